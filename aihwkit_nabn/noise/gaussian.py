"""Gaussian weight noise: the textbook setting, additive or multiplicative."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError, check_number, suggestion
from aihwkit_nabn.noise.base import WeightNoiseModel
from aihwkit_nabn.noise.registration import register_noise_model

_RELATIVE_TO = ("max", "column", "weight")


@register_noise_model("gaussian")
class GaussianWeightNoise(WeightNoiseModel):
    """Independent normal noise on every weight, drawn once per chip; it does not change with time.

    With N standard normal:

    * ``relative_to="max"``: additive, ``w + sigma * w_max * N``, `w_max` the largest |weight| of the layer (of the
      whole layer, also where it is split over tiles, if ``layer_max`` is set);
    * ``relative_to="column"``: additive, `w_max` the largest |weight| of the same output on the same tile, as if each
      column were programmed at full range and scaled back digitally;
    * ``relative_to="weight"``: multiplicative, ``w * (1 + sigma * N)``; zeros stay zero.

    A setting rather than a device: weights may exceed the layer's maximum, nothing is clipped.

    Args:
        sigma: Standard deviation as a fraction of the layer's or column's maximum, or of each weight; 0 switches the
            noise off.
        relative_to: ``"max"``, ``"column"`` or ``"weight"``.

    Raises:
        NabnError: `sigma` is negative or not finite, or `relative_to` is none of these.
    """

    strength: ClassVar[str] = "sigma"

    def __init__(self, sigma: float = 0.06, relative_to: str = "max") -> None:
        super().__init__()
        self.sigma = check_number("sigma", sigma, minimum=0.0)
        if relative_to not in _RELATIVE_TO:
            raise NabnError(
                f"relative_to must be 'max', 'column' or 'weight', got {relative_to!r}"
                f"{suggestion(relative_to, _RELATIVE_TO)}"
            )
        self.relative_to = relative_to

    @property
    def relative_to_column(self) -> bool:  # type: ignore[override]
        """Whether the noise is a fraction of each output's maximum."""
        return self.relative_to == "column"

    @property
    def uses_layer_max(self) -> bool:  # type: ignore[override]
        """Whether the layer's maximum is asked for."""
        return not self.relative_to_column

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``weights`` plus the noise; ``[out, in]`` in the tile's units."""
        unit = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
        scale = weights if self.relative_to == "weight" else w_max
        return weights + self.sigma * scale * unit
