"""A chip that works at another temperature than the one it was programmed at."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.noise.base import WeightNoiseModel
from aihwkit_nabn.noise.registration import register_noise_model
from aihwkit_nabn.noise.runtime import chip_normal


@register_noise_model("temperature")
class TemperatureVariation(WeightNoiseModel):
    """Conductances scaled by the ambient temperature, with a spread from device to device.

    From first principles: the equations of Ahmed and Tahoori ("Design-time Reference Current Generation for Robust
    Spintronic-based Neuromorphic Architecture", ACM JETC 2023), who report temperature variation up to 125 C, could not
    be read; formulas and default values are ours, no fit. With N standard normal:

    * the whole chip works ``dT = mean_k + sigma_k N`` kelvin away from where it was programmed, one draw per chip;
    * each weight becomes ``w (1 + c dT (1 + c_spread N))``, one draw per weight, c the temperature coefficient of the
      conductance.

    A device is not driven below no conductance: the factor is at least 0. Times: any; it does not change with time.

    Args:
        temperature_coefficient_per_k: c, relative change of the conductance per kelvin; 0 switches the model off,
            negative values suit metallic conduction.
        mean_k: Mean temperature change of the chips, K.
        sigma_k: Its spread from chip to chip, K.
        coefficient_spread: c_spread, relative spread of c from device to device.

    Raises:
        NabnError: an argument is out of range.
    """

    strength: ClassVar[str] = "temperature_coefficient_per_k"
    cycle_to_cycle: ClassVar[bool] = False

    def __init__(
        self,
        temperature_coefficient_per_k: float = 0.002,
        mean_k: float = 40.0,
        sigma_k: float = 20.0,
        coefficient_spread: float = 0.3,
    ) -> None:
        super().__init__()
        self.temperature_coefficient_per_k = check_number(
            "temperature_coefficient_per_k", temperature_coefficient_per_k
        )
        self.mean_k = check_number("mean_k", mean_k)
        self.sigma_k = check_number("sigma_k", sigma_k, minimum=0.0)
        self.coefficient_spread = check_number("coefficient_spread", coefficient_spread, minimum=0.0)

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weights at the chip's temperature; ``[out, in]`` in the tile's units."""
        change_k = self.mean_k + self.sigma_k * chip_normal(self, "temperature", generator)
        unit = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
        change = self.temperature_coefficient_per_k * change_k * (1.0 + self.coefficient_spread * unit)
        return weights * (1.0 + change).clamp(min=0.0)
