"""Mix the trained statistics with the chip's, as a prior worth so many samples."""

from __future__ import annotations

from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


@register_calibration_method("prior")
class Prior(CalibrationMethod):
    """``N / (N + n) mu_r + n / (N + n) mu_a`` for the mean, likewise for the variance; n samples were seen.

    Args:
        strength: N, how many samples the trained statistics are worth; 0 is method ``population``.

    Source: Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation".
    """

    summary = "mixes the trained statistics, worth N samples, with the chip's over n calibration samples"
    replaces_statistics = True

    def __init__(self, strength: float = 16.0) -> None:
        meaning = "how many samples the trained statistics are worth"
        self.strength = check_number("strength", strength, minimum=0.0, meaning=meaning)

    def calibrate(self, session: CalibrationSession) -> None:
        """Mix the chip's moments in, layer by layer."""

        def mixture(bn: NoiseAwareBatchNorm, moments: Moments) -> Statistics:
            share = self.strength / (self.strength + session.n_samples)
            mean, var = bn.trained_statistics()
            return share * mean.double() + (1 - share) * moments.mean, share * var.double() + (1 - share) * moments.var

        session.measure_batchnorms(mixture)
