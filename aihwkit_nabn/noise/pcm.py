"""Phase-change memory: programming noise, drift and 1/f read noise."""

from __future__ import annotations

from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.noise.conductance import ConductanceNoise, check_scales
from aihwkit_nabn.noise.registration import register_noise_model


@register_noise_model("pcm")
class PCM(ConductanceNoise):
    """aihwkit's phase-change memory model (Nandakumar et al., ICECS 2019), bit for bit.

    One differential pair per weight. With g in uS, ``x = g / g_max`` and N standard normal:

    * programming: ``g_p = max(0, g + s N)``, ``s = (0.26348 + 1.9650 x - 1.1731 x^2) g_max / 25``;
    * drift: ``g_d = g_p ((t + t0) / t0)^-nu``, ``t0 = 20 s``, ``nu = |m + d N|``,
      ``m = clamp(-0.0155 ln x + 0.0244, 0.049, 0.1)``, ``d = clamp(-0.0125 ln x - 0.0059, 0.008, 0.045)``;
    * read: ``g_d (1 + q sqrt(ln((t + t0 + t_r) / (2 t_r))) N)``, ``t_r = 250 ns``,
      ``q = min(0.0088 / max(x^0.65, 0.001), 0.2)``; cut off at 0. It acts at every drift call, at 0 s too.

    Times: 0 s to 10 years. See `ConductanceNoise` for how weights become conductances.

    Args:
        g_max_us: Conductance of the tile's largest weight, in uS; the fit was made at 25. aihwkit scales all noise with
            it, so the noise of the *weights* does not depend on it.
        noise_scale: Factor on everything below; 0 switches the model off.
        prog_noise_scale: Factor on the programming noise.
        read_noise_scale: Factor on the read noise.
        drift_scale: Factor on the drift exponents.

    Raises:
        NabnError: `g_max_us` is not positive, or a scale is negative.
    """

    def __init__(
        self,
        g_max_us: float = 25.0,
        noise_scale: float = 1.0,
        prog_noise_scale: float = 1.0,
        read_noise_scale: float = 1.0,
        drift_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.g_max_us = check_number("g_max_us", g_max_us, exclusive_minimum=0.0)
        check_scales(
            self,
            noise_scale=noise_scale,
            prog_noise_scale=prog_noise_scale,
            read_noise_scale=read_noise_scale,
            drift_scale=drift_scale,
        )

    def device(self) -> BaseNoiseModel:
        """Return aihwkit's ``PCMLikeNoiseModel``."""
        return PCMLikeNoiseModel(
            g_max=self.g_max_us,
            prog_noise_scale=self.noise_scale * self.prog_noise_scale,
            read_noise_scale=self.noise_scale * self.read_noise_scale,
            drift_scale=self.noise_scale * self.drift_scale,
        )
