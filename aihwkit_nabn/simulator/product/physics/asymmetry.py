"""Converters that give negative values less weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aihwkit_nabn.simulator.product.physics.effect import Flows, Reading, ReadoutEffect


@dataclass(frozen=True)
class Asymmetry(ReadoutEffect):
    """Multiplies negative results with one minus `strength`."""

    strength: float

    def apply(self, y: Tensor, flows: Flows, at: Reading) -> Tensor:
        """Return the results, negative ones smaller."""
        return asymmetric(y, self.strength)


def asymmetric(x: Tensor, strength: float) -> Tensor:
    """Return `x`, its negative values times one minus `strength`."""
    return torch.where(x < 0, x * (1.0 - strength), x)
