"""Replace the trained statistics by those of the chip over the calibration set."""

from __future__ import annotations

from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


def so_far(bn: NoiseAwareBatchNorm, total: Moments, now: Moments) -> Statistics:
    """Return the population moments of everything seen so far."""
    return total.mean, total.var


@register_calibration_method("population")
class Population(CalibrationMethod):
    """Mean and variance of each BatchNorm's input over the whole calibration set take the trained ones' place.

    Exact population moments: weighted by count, with the between-batch term, so the batch size does not matter. While
    they are gathered each layer normalises with its moments so far, so that later layers see corrected inputs.

    Source: noise-aware (calibrated) batch normalization, Tsai et al., arXiv 2007.03230, read plainly from its abstract;
    as precise BatchNorm in fvcore.
    """

    summary = "statistics of the chip over the calibration set, in place of the trained ones"
    replaces_statistics = True

    def calibrate(self, session: CalibrationSession) -> None:
        """Gather and replace."""
        session.set_batchnorms(session.observe_batchnorms(so_far), so_far)
