"""Noise of each result: that of the outputs, and the read noise of all devices behind one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aihwkit_nabn.simulator.product.physics.effect import Currents, Flows, Reading, ReadoutEffect


@dataclass(frozen=True)
class Noise(ReadoutEffect):
    """Adds one normal number to each result, for the output noise and all its devices' read noise together.

    Args:
        w_noise: Standard deviation of the weights' read noise; 0: none.
        weighted: Whether its variance grows with the weight (PCM), or is the same for all.
    """

    w_noise: float
    weighted: bool

    def flows(self, currents: Currents) -> Flows:
        """Return the variance of the read noise. aihwkit: ``sqrt(sum |w| x^2)`` for PCM, else the norm of x."""
        return (currents.squares(self.w_noise, self.weighted),) if self.w_noise > 0.0 else ()

    def apply(self, y: Tensor, flows: Flows, at: Reading) -> Tensor:
        """Add the numbers."""
        own = at.noise
        return at.add(y, at.normal(y), (flows[0] + own * own).sqrt_() if flows else own)

    def compiled(self, flows: Flows) -> dict[str, Any]:
        """The C code has it."""
        return {"draws": True, "variance": flows[0] if flows else None}
