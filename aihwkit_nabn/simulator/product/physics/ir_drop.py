"""IR drop: what the wires' resistance takes from inputs far along them, by aihwkit's polynomial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aihwkit_nabn.simulator.product.physics.effect import Currents, Flows, Reading, ReadoutEffect


@dataclass(frozen=True)
class IRDrop(ReadoutEffect):
    """Takes away a part of the product that grows with the total current and each row's distance.

    Args:
        strength: 1 is the physical value.
        g_ratio: Conductance of the wires over that of a device.
    """

    strength: float
    g_ratio: float

    def flows(self, currents: Currents) -> Flows:
        """Return the total current, and the product with inputs weighted by their distance."""
        near = 1.0 - currents.depth
        return currents.total(self.g_ratio), currents.by_row(1.0 - near * near)

    def apply(self, y: Tensor, flows: Flows, at: Reading) -> Tensor:
        """Take the lost part away."""
        current, far = flows
        return at.add(y, current * (current * (0.05 * current - 0.2) + 0.5), far, -self.strength)

    def compiled(self, flows: Flows) -> dict[str, Any]:
        """The C code has it."""
        return {"current": flows[0], "drop": flows[1], "ir_drop": self.strength}
