"""Thermal crosstalk: cells that carry current warm themselves and their neighbours, and conduct otherwise when warm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.errors import check_count, check_number
from aihwkit_nabn.noise.base import WeightNoiseModel
from aihwkit_nabn.noise.registration import register_noise_model


@register_noise_model("thermal")
class ThermalCrosstalk(WeightNoiseModel):
    """Self-heating and thermal crosstalk in a crossbar, in steady state, to first order.

    From first principles: the equations of the study that this setting is named after (Pande et al., "Thermal Crosstalk
    Analysis in RRAM Passive Crossbar Arrays", arXiv 2304.01439) could not be read, so formulas and default values are
    ours, the latter orders of magnitude for filamentary resistive memory, not a fit. For cell (i, j) of the tile, a
    pair of devices that holds w, with N standard normal and drawn once per cell:

    * conductance ``g = g_max |w| / max|w|`` (the idle device of the pair carries nothing);
    * power ``P = duty v_read^2 g``; with uS and V this is uW;
    * temperature rise ``dT_ij = R (P_ij + sum_kl a(d) P_kl)`` over the other cells, ``a(d) = coupling
      exp(-(d - 1) / decay_cells)``, d the distance in cells, up to `radius_cells` rows and columns away;
    * weight ``w (1 + c dT (1 + c_spread N))``, c the temperature coefficient of the conductance.

    The tile is laid out as its matrix, outputs by inputs, and ends at its edge. The error is correlated between
    neighbours and grows with the weights around. That changed conductances change the power is left out. Times: any;
    it does not change with time.

    Args:
        thermal_resistance_k_per_uw: R, temperature rise of a cell per power of its own; 0 switches the model off.
        coupling: Share of its temperature rise that a cell passes on to a direct neighbour.
        decay_cells: Distance in cells over which that share falls by a factor of e.
        radius_cells: How many rows and columns away neighbours count.
        temperature_coefficient_per_k: c, relative change of the conductance per kelvin; negative for metallic
            conduction.
        coefficient_spread: c_spread, relative spread of c from cell to cell.
        g_max_us: Conductance of the tile's largest weight, uS.
        v_read: Read voltage, V.
        duty: Share of the time a cell is read, times the mean square of its input over that of the full read voltage.

    Raises:
        NabnError: an argument is out of range.
    """

    strength: ClassVar[str] = "thermal_resistance_k_per_uw"
    columnwise_mapping: ClassVar[bool] = True
    cycle_to_cycle: ClassVar[bool] = False

    def __init__(
        self,
        thermal_resistance_k_per_uw: float = 1.0,
        coupling: float = 0.3,
        decay_cells: float = 1.0,
        radius_cells: int = 3,
        temperature_coefficient_per_k: float = 0.002,
        coefficient_spread: float = 0.1,
        g_max_us: float = 40.0,
        v_read: float = 0.3,
        duty: float = 1.0,
    ) -> None:
        super().__init__()
        self.thermal_resistance_k_per_uw = check_number(
            "thermal_resistance_k_per_uw", thermal_resistance_k_per_uw, minimum=0.0
        )
        self.coupling = check_number(
            "coupling",
            coupling,
            minimum=0.0,
            maximum=1.0,
            meaning="the share of its temperature rise that a cell passes on to a neighbour",
        )
        self.decay_cells = check_number("decay_cells", decay_cells, exclusive_minimum=0.0)
        self.radius_cells = check_count("radius_cells", radius_cells)
        self.temperature_coefficient_per_k = check_number(
            "temperature_coefficient_per_k", temperature_coefficient_per_k
        )
        self.coefficient_spread = check_number("coefficient_spread", coefficient_spread, minimum=0.0)
        self.g_max_us = check_number("g_max_us", g_max_us, exclusive_minimum=0.0)
        self.v_read = check_number("v_read", v_read, minimum=0.0)
        self.duty = check_number("duty", duty, minimum=0.0, maximum=1.0, meaning="the share of the time a cell is read")

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weights as the warm cells show them; ``[out, in]`` in the tile's units."""
        unit = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
        coefficient = self.temperature_coefficient_per_k * (1.0 + self.coefficient_spread * unit)
        return weights * (1.0 + coefficient * self.temperature_rise_k(weights))

    def temperature_rise_k(self, weights: Tensor) -> Tensor:
        """Return each cell's temperature above ambient, K, in the shape of `weights`."""
        full_scale = weights.abs().amax() if weights.numel() else weights.new_zeros(())
        if full_scale == 0:
            return torch.zeros_like(weights)
        power_uw = self.duty * self.v_read**2 * self.g_max_us * (weights.abs() / full_scale)
        rows = weights.shape[0] if weights.dim() > 1 else 1
        plane = power_uw.reshape(1, 1, rows, -1)
        kernel = self._kernel(weights.dtype)[None, None]
        return (self.thermal_resistance_k_per_uw * F.conv2d(plane, kernel, padding="same")).reshape(weights.shape)

    def _kernel(self, dtype: torch.dtype) -> Tensor:
        offset = torch.arange(-self.radius_cells, self.radius_cells + 1, dtype=dtype)
        distance = torch.sqrt(offset[:, None] ** 2 + offset[None, :] ** 2)
        kernel = self.coupling * torch.exp(-(distance - 1.0) / self.decay_cells)
        kernel[self.radius_cells, self.radius_cells] = 1.0
        return kernel
