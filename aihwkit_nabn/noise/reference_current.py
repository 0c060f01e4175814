"""Reference currents that are off: every output is read against a scale of its own."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.noise.base import WeightNoiseModel
from aihwkit_nabn.noise.registration import register_noise_model


@register_noise_model("reference_current")
class ReferenceCurrentVariation(WeightNoiseModel):
    """A gain error of each output of a tile, as a wrong reference current gives it.

    From first principles: the equations of Ahmed and Tahoori ("Design-time Reference Current Generation for Robust
    Spintronic-based Neuromorphic Architecture", ACM JETC 2023) could not be read; formula and default are ours, no fit.
    A converter compares the summed current with its reference, so a reference that is off by a factor scales the
    output. With N standard normal, every weight of output i of a tile is multiplied with

    ``1 + sigma (sqrt(shared) N_tile + sqrt(1 - shared) N_i)``,

    one N_tile per tile, for a reference that its outputs have in common, and one N_i per output. The gain is at least
    0. Times: any; it does not change with time.

    Args:
        sigma: Standard deviation of the gain; 0 switches the model off.
        shared: Share of its variance that the outputs of a tile have in common, in [0, 1].

    Raises:
        NabnError: an argument is out of range.
    """

    strength: ClassVar[str] = "sigma"
    cycle_to_cycle: ClassVar[bool] = False

    def __init__(self, sigma: float = 0.1, shared: float = 0.5) -> None:
        super().__init__()
        self.sigma = check_number("sigma", sigma, minimum=0.0)
        self.shared = check_number(
            "shared", shared, minimum=0.0, maximum=1.0, meaning="the share of the variance that outputs have in common"
        )

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Tensor:
        """Return the weights times their output's gain; ``[out, in]`` in the tile's units."""
        n_outputs = weights.shape[0] if weights.dim() > 1 else 1
        shape = (n_outputs, *[1] * (weights.dim() - 1))
        of_tile = torch.randn((), generator=generator, dtype=weights.dtype)
        of_output = torch.randn(shape, generator=generator, dtype=weights.dtype)
        unit = math.sqrt(self.shared) * of_tile + math.sqrt(1.0 - self.shared) * of_output
        return weights * (1.0 + self.sigma * unit).clamp(min=0.0)
