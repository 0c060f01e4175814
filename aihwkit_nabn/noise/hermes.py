"""The phase-change memory of IBM's HERMES project chip."""

from __future__ import annotations

from typing import Any

from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.noise.conductance import ScaledNoise
from aihwkit_nabn.noise.registration import register_noise_model

_G_MAX_US = {1: 10.35, 2: 20.7}


@register_noise_model("hermes")
class Hermes(ScaledNoise):
    """aihwkit's fit of the HERMES chip (Le Gallo et al., Nature Electronics 2023), bit for bit.

    One differential pair of unit cells per weight, each of one or two devices. With ``x = g / g_max`` and N standard
    normal:

    * programming: ``g_p = max(0, g + s N)`` with, in uS at the full g_max,
      ``s = 0.16603222 + 4.71806468 x - 8.48101252 x^2 + 4.68961419 x^3`` for two devices and
      ``s = 0.15781817 + 2.32443916 x - 2.16310839 x^2 + 0.68841818 x^3`` for one;
    * drift: ``g_p ((t + t0) / t0)^-nu``, ``t0 = 300 s`` (two devices) or ``200 s`` (one), nu normal with a mean of 0.02
      to 0.13 and a spread of 0.005 to 0.04 that depend piecewise on x;
    * read: 1/f noise as in `PCM`, ``t_r = 512 ns``, amplitude piecewise in x. It acts at every drift call, at 0 s too.

    Times: 0 s to 10 years. See `ConductanceNoise` for how weights become conductances.

    Args:
        num_devices: Devices per unit cell, 1 or 2.
        g_max_us: Conductance of the tile's largest weight, in uS, at most the characterised 10.35 (one device) or
            20.7 (two), which None stands for. aihwkit scales all noise with it, so the noise of the *weights* does not
            depend on it.
        **options: As in `PCM`. ``devices_per_weight`` counts pairs of unit cells.

    Raises:
        NabnError: `num_devices` is neither 1 nor 2, or an option is out of range.
    """

    def __init__(self, num_devices: int = 2, g_max_us: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(num_devices, bool) or num_devices not in _G_MAX_US:
            raise NabnError(f"num_devices must be 1 or 2, got {num_devices!r}")
        self.num_devices = num_devices
        limit = _G_MAX_US[num_devices]
        self.g_max_us = (
            limit if g_max_us is None else check_number("g_max_us", g_max_us, exclusive_minimum=0.0, maximum=limit)
        )

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's ``HermesNoiseModel``."""
        return HermesNoiseModel(num_devices=self.num_devices, g_max=self.g_max_us, **self.scales())
