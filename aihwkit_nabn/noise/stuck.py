"""Devices that are stuck: at no conductance or at the largest, from programming on."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.registration import register_noise_model
from aihwkit_nabn.noise.runtime import HoldingNoise


@register_noise_model("stuck")
class StuckDevices(HoldingNoise):
    """Persistent faults of single devices; the rest of the chip is perfect.

    A weight is a pair of devices, ``w = g+ - g-``: one holds |w|, the other nothing. Each device on its own is stuck at
    0 with probability `p_off` and at g_max with probability `p_on`, g_max standing for the largest |weight| of the
    tile. So a stuck-off device loses its weight or does nothing, depending on which of the pair it is, and a stuck-on
    device moves the weight by up to g_max. Positions are drawn at programming and stay for the life of the chip. In a
    composition the healthy devices drift and vary, the stuck ones do not.

    A statistical fault model; the rates are for the user to say, the defaults are no measurement. Times: any.

    Args:
        p_off: Probability that a device is stuck at 0, in [0, 1].
        p_on: Probability that a device is stuck at g_max, in [0, 1]; at most ``1 - p_off``.
        fault_scale: Factor on both probabilities; 0 switches the model off.

    Raises:
        NabnError: a probability is outside [0, 1], or the scaled ones add up to more than 1.
    """

    strength: ClassVar[str] = "fault_scale"
    columnwise_mapping: ClassVar[bool] = True

    def __init__(self, p_off: float = 0.01, p_on: float = 0.001, fault_scale: float = 1.0) -> None:
        super().__init__()
        self.p_off = check_number(
            "p_off", p_off, minimum=0.0, maximum=1.0, meaning="the probability of being stuck at 0"
        )
        self.p_on = check_number(
            "p_on", p_on, minimum=0.0, maximum=1.0, meaning="the probability of being stuck at g_max"
        )
        self.fault_scale = check_number("fault_scale", fault_scale, minimum=0.0)
        if self.fault_scale * (self.p_off + self.p_on) > 1.0 + 1e-12:
            raise NabnError(
                "fault_scale * (p_off + p_on) must be <= 1, got "
                f"{self.fault_scale:g} * ({self.p_off:g} + {self.p_on:g})"
            )

    def stick(self, weights: Tensor, full_scale: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Draw which devices are stuck, ``[2, *shape]`` (plus, minus), and put the faults in place."""
        drawn = torch.rand((2, *weights.shape), generator=generator, dtype=torch.float64)
        p_off, p_on = self.fault_scale * self.p_off, self.fault_scale * self.p_on
        state = {
            "stuck_off": drawn < p_off,
            "stuck_on": (drawn >= p_off) & (drawn < p_off + p_on),
            "full_scale": full_scale.clone(),
        }
        return self.impose(weights, state), state

    def impose(self, weights: Tensor, state: State) -> Tensor:
        """Return ``g+ - g-`` of the pairs that hold `weights`, stuck devices at their value."""
        return self._net(weights, weights, -weights, state)

    def hold(self, weights: Tensor, state: State) -> Tensor:
        """Return ``g+ - g-``, the healthy device of a pair being what the stuck one leaves of `weights`, at least 0."""
        on = state["stuck_on"].to(weights.device)
        values = torch.where(on, state["full_scale"].to(weights), 0.0)
        stuck = on | state["stuck_off"].to(weights.device)
        plus = torch.where(stuck[1], weights + values[1], weights)
        minus = torch.where(stuck[0], values[0] - weights, -weights)
        return self._net(weights, plus, minus, state)

    def _net(self, weights: Tensor, plus: Tensor, minus: Tensor, state: State) -> Tensor:
        on, off = state["stuck_on"].to(weights.device), state["stuck_off"].to(weights.device)
        devices = torch.stack([plus, minus]).clamp(min=0.0)
        devices = torch.where(off, 0.0, torch.where(on, state["full_scale"].to(weights), devices))
        # Pairs without a fault are left bit for bit.
        return torch.where((on | off).any(0), devices[0] - devices[1], weights)
