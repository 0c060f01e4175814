"""Resistive memory: filamentary ReRAM of Wan et al. (2022) and CMO/HfOx ReRAM of Falcone et al. (2025)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from aihwkit.inference.converter.conductance import SingleDeviceConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel
from torch import Tensor

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.conductance import ConductanceNoise, ScaledNoise, join_pair, split_pair, unit_noise
from aihwkit_nabn.noise.registration import register_noise_model

_DAY_S = 86_400.0
_WAN_G_MAX_US = 40.0
_SMALLEST_WEIGHT = 1e-7


class _CMODevice(ReRamCMONoiseModel):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.g_converter = _SingleDevice(g_max=self.g_max, g_min=self.g_min)

    def apply_drift_noise_to_conductance(
        self, g_prog: Tensor, drift_noise_param: Tensor | None, t_inference: float
    ) -> Tensor:
        if t_inference == 0:
            return g_prog
        seconds = max(t_inference, 1.0)
        slope, offset = self.decay_dict["std"]
        mean_us = self.decay_dict["mean"][0] * math.log(seconds)
        sigma_us = slope * math.log(seconds) + offset
        relaxed = g_prog + self.drift_scale * (mean_us + sigma_us * torch.randn_like(g_prog))
        t_read = self.read_dict["t_read"]
        growth = math.sqrt(math.log((seconds + t_read) / (2 * t_read)))
        read_us = self.read_dict["K"] * torch.log10(relaxed.clamp(min=1.0)) * growth
        read = self.read_noise_scale * read_us * torch.randn_like(g_prog)
        return (relaxed + read).clamp(min=self.g_min, max=self.g_max)


class _SingleDevice(SingleDeviceConductanceConverter):
    """aihwkit's mapping, for whole matrices instead of row by row, and for weights that are all equal."""

    def convert_to_conductances(self, weights: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        low, high = _weight_range(weights)
        us_per_weight = (self.g_max - self.g_min) / (high - low)
        return [(weights - low) * us_per_weight + self.g_min], {"scale_ratio": us_per_weight, "min": low}

    def convert_back_to_weights(self, conductances: list[Tensor], params: dict[str, Tensor]) -> Tensor:
        return super().convert_back_to_weights(conductances[0], params)


def _weight_range(weights: Tensor) -> tuple[Tensor, Tensor]:
    low, high = weights.aminmax()
    if low == high:
        high = weights.abs().amax().clamp(min=_SMALLEST_WEIGHT)
        low = -high
    return low, high


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        value = value * x + coefficient
    return value


@register_noise_model("reram_wan")
class ReRAMWan(ConductanceNoise):
    """ReRAM of Wan et al. (Nature 2022), from the polynomials aihwkit fitted to the published figures.

    One differential pair per weight. A device of target g (in uS, ``x = g / g_max``) is found at
    ``max(0, g + s(x, t) N)``; s is a polynomial of fourth order in x at each of the characterised times 1 s, 1 day and
    2 days, given in uS at ``g_max = 40`` and scaled with g_max. Nothing drifts in the mean.

    Times: 0 s to 2 days. Up to 1 s the chip is as programmed; between the characterised times s is interpolated
    linearly in log t. Beyond 2 days nothing was measured, and asking raises.

    Three things differ from aihwkit's ``ReRamWan2022NoiseModel``. It relates s to its own g_max instead of 40, which at
    its default of 25 makes the noise 1.6 times the published one. It redraws every device when time passes; here a
    device keeps its programming error and adds an independent step, so that a chip at 1 day is still the chip of 1 s,
    with the published spread. And it scales the weights back by the programmed maximum instead of the target's, an
    error in gain.

    Args:
        g_max_us: Conductance of the tile's largest weight, in uS. The noise is scaled with it, so the noise of the
            *weights* does not depend on it.
        **options: ``noise_scale``, the factor on s, and the options of cells (`ConductanceNoise`).

    Raises:
        NabnError: `g_max_us` is not positive, or an option is out of range.
    """

    t_range_s: ClassVar[tuple[float, float]] = (0.0, 2 * _DAY_S)

    def __init__(self, g_max_us: float = _WAN_G_MAX_US, **options: Any) -> None:
        super().__init__(**options)
        self.g_max_us = check_number("g_max_us", g_max_us, exclusive_minimum=0.0)

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's model, the source of the coefficients, with the g_max they were fitted at put right."""
        device = ReRamWan2022NoiseModel(g_max=self.g_max_us, noise_scale=self.noise_scale)
        device.coeff_g_max_reference = _WAN_G_MAX_US
        return device

    def sigma_us(self, target_us: Tensor, t_inference: float) -> Tensor:
        """Return the standard deviation of devices with target `target_us` after `t_inference` seconds, all in uS."""
        coefficients: dict[float, list[float]] = self.device().coeff_dic
        times = sorted(coefficients)
        seconds = min(max(t_inference, times[0]), times[-1])
        later = next(index for index, time in enumerate(times) if seconds <= time)
        x = target_us / self.g_max_us
        sigma = _polynomial(coefficients[times[later]], x)
        if later > 0:
            span = math.log(times[later] / times[later - 1])
            part = math.log(seconds / times[later - 1]) / span
            sigma = torch.lerp(_polynomial(coefficients[times[later - 1]], x), sigma, part)
        return self.noise_scale * sigma * (self.g_max_us / _WAN_G_MAX_US)

    def program_devices(self, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights at 1 s, with the pairs' targets and undisturbed values (before the cut-off at 0) in uS."""
        us_per_weight = self.g_max_us / weights.abs().amax().clamp(min=_SMALLEST_WEIGHT)
        target = split_pair(weights * us_per_weight)
        latent = target + self.sigma_us(target, 0.0) * unit_noise(target, generator)
        state = {"target_us": target, "latent_us": latent, "us_per_weight": us_per_weight}
        return join_pair(latent) / us_per_weight, state

    def drift_devices(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights at `t_inference`: each device's error grown to the spread of that time."""
        if t_inference <= 1.0:
            return programmed
        self.require_state(state, "latent_us")
        target, latent, us_per_weight = state["target_us"], state["latent_us"], state["us_per_weight"]
        before, now = self.sigma_us(target, 0.0), self.sigma_us(target, t_inference)
        kept = (latent - target) * (now / before).clamp(max=1.0)
        step = (now.square() - before.square()).clamp(min=0.0).sqrt() * unit_noise(target, generator)
        # The difference is what other effects of a composition have done to the weights since.
        others = programmed - (join_pair(latent) / us_per_weight).to(programmed)
        return join_pair(target + kept + step) / us_per_weight + others


@register_noise_model("reram_cmo")
class ReRAMCMO(ScaledNoise):
    """Conductive-metal-oxide/HfOx ReRAM of Falcone et al. (arXiv 2502.04524, 2025), with aihwkit's coefficients.

    One device per weight: the tile's smallest weight is mapped to g_min, its largest to g_max. With g in uS, N standard
    normal and t in seconds:

    * programming: ``g + s N``, ``s = 0.00081107 + 0.00106879 g`` at an acceptance range of 0.2 %,
      ``s = 0.0112185391 + 0.01129027418 g`` at 2 %;
    * relaxation: ``g - 0.08900206 ln t + (0.04201137 ln t + 0.41183342) N``;
    * read: plus ``0.0277316483 log10(g) sqrt(ln((t + t_r) / (2 t_r))) N``, ``t_r = 1 us``; then
      clamped to g_min ... g_max.

    The relaxation shifts every device the same way, and with a single device per weight no pair cancels it: all weights
    of a tile move by the same amount, which scaling the output (drift compensation) cannot undo.

    Times: 0 s to 10 years, the paper's extrapolation included. At 0 s the chip is as programmed; from there to 1 s the
    values of 1 s hold, since the fitted spread turns negative towards 0. Where a device falls below 1 uS, aihwkit's
    read noise gets a negative spread or NaN; here it is 0. Weights that are all equal are mapped from -|w| to |w|.

    Args:
        g_max_us: Conductance of the tile's largest weight, in uS.
        g_min_us: Conductance of its smallest, in uS, at least 0 and below `g_max_us`.
        acceptance_range_percent: Where programming stops, 0.2 or 2 percent of the target. 0.2 is what aihwkit's default
            comes to: it is written as 0.02, which its table does not have.
        **options: Factors on the noise (`ScaledNoise`; ``drift_scale`` is one on the relaxation, mean and spread), and
            the options of cells (`ConductanceNoise`).

    Raises:
        NabnError: an option is out of range, or the acceptance range is neither.
    """

    def __init__(
        self,
        g_max_us: float = 88.199997,
        g_min_us: float = 9.0,
        acceptance_range_percent: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.g_min_us = check_number("g_min_us", g_min_us, minimum=0.0)
        self.g_max_us = check_number("g_max_us", g_max_us, exclusive_minimum=self.g_min_us)
        if acceptance_range_percent not in (0.2, 2):
            raise NabnError(f"acceptance_range_percent must be 0.2 or 2, got {acceptance_range_percent!r}")
        self.acceptance_range_percent = acceptance_range_percent

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's ``ReRamCMONoiseModel`` with the mapping and the relaxation made safe."""
        return _CMODevice(
            g_max=self.g_max_us,
            g_min=self.g_min_us,
            acceptance_range=self.acceptance_range_percent,
            **self.scales(),
        )

    def conductance_range(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which weights stand for no conductance, for g_min, and for g_max."""
        lowest, largest = _weight_range(weights)
        return lowest - self.g_min_us * (largest - lowest) / (self.g_max_us - self.g_min_us), lowest, largest
