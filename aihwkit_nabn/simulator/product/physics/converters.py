"""What happens to a tile's input and output: digital-to-analog and analog-to-digital conversion.

The settings are aihwkit's `IOParameters`; the arithmetic is that of its torch tile, in its order of operations, so that
values on the edge between two steps fall to the same side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor


def resolution_step(resolution: float, bound: float) -> float:
    """Return a converter's step; 0 if it converts exactly.

    Args:
        resolution: Number of steps, or one over it, as aihwkit takes both; not positive: exact.
        bound: Largest value the converter takes; its range is twice that.
    """
    if resolution <= 0:
        return 0.0
    return (1.0 / resolution if resolution > 1.0 else resolution) * 2.0 * bound


@dataclass(frozen=True, kw_only=True)
class Converter:
    """Rounding to multiples of a step, and a largest value.

    Args:
        step: Distance between two levels; 0 converts exactly.
        bound: Largest absolute value, ``inf`` if there is none.
        asymmetry: Negative values are multiplied with one minus this.
        stochastic: Whether values are rounded up with the probability of their distance to the level below.
    """

    step: float
    bound: float
    asymmetry: float
    stochastic: bool

    @property
    def unit(self) -> float:
        """What an integer level stands for; 1 where nothing is rounded."""
        return self.step or 1.0

    def levels_(self, x: Tensor) -> Tensor:
        """Round and clamp `x`, in place, from values to levels: multiples of `unit`."""
        if self.step:
            self.round_(x.div_(self.step), lambda levels: levels.add_(torch.rand_like(levels)).sub_(0.5))
        return self.clamp_(x)

    def round_(self, x: Tensor, dither: Callable[[Tensor], object]) -> Tensor:
        """Round `x` to levels, in place, if there are any; `dither` adds what makes the rounding stochastic."""
        if self.step:
            if self.stochastic:
                dither(x)
            x.round_()
        return x

    def clamp_(self, x: Tensor) -> Tensor:
        """Cut off levels beyond the largest, in place."""
        if math.isfinite(self.bound):
            limit = self.bound / self.unit
            x.clamp_(-limit, limit)
        return x

    def straight_through(self, x: Tensor) -> Tensor:
        """Return the converted values of `x`; gradients pass where nothing was clamped, as in aihwkit."""
        if self.step:
            noise = torch.rand_like(x) - 0.5 if self.stochastic else 0.0
            rounded = (x.detach() / self.step + noise).round() * self.step
            x = x + (rounded - x.detach())
        if math.isfinite(self.bound):
            x = x.clamp(-self.bound, self.bound)
        return x


def input_converter(io: IOParameters) -> Converter:
    """Return the DAC of a tile's settings."""
    return _converter(io, "inp")


def output_converter(io: IOParameters) -> Converter:
    """Return the ADC of a tile's settings."""
    return _converter(io, "out")


def _converter(io: IOParameters, side: str) -> Converter:
    if io.is_perfect:
        return Converter(step=0.0, bound=math.inf, asymmetry=0.0, stochastic=False)
    names = ("res", "bound", "asymmetry", "sto_round")
    resolution, bound, asymmetry, stochastic = (getattr(io, f"{side}_{name}") for name in names)
    return Converter(
        step=resolution_step(resolution, bound),
        bound=bound if bound > 0 else math.inf,
        asymmetry=asymmetry,
        stochastic=stochastic,
    )


def static_input_scale(io: IOParameters) -> float | None:
    """Return what noise management divides every input by; None where it depends on the input vector."""
    if io.is_perfect or io.noise_management == NoiseManagementType.NONE:
        return 1.0
    if io.noise_management == NoiseManagementType.CONSTANT:
        return io.nm_thres if io.nm_thres > 0.0 else 1.0
    return None
