"""Replace the trained statistics with those of the chip over the calibration set."""

from __future__ import annotations

from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.session import CalibrationSession


@register_calibration_method("population")
class Population(CalibrationMethod):
    """Mean and variance of each BatchNorm's input over the whole calibration set replace the trained ones.

    Exact population moments, every layer's behind the final statistics of those before it: any split of the set into
    batches gives the same.

    Source: noise-aware (calibrated) batch normalization, Tsai et al., arXiv 2007.03230, read plainly from its abstract;
    as precise BatchNorm in fvcore.
    """

    summary = "replaces the trained statistics with the chip's over the calibration set"
    replaces_statistics = True

    def calibrate(self, session: CalibrationSession) -> None:
        """Gather and replace."""
        session.measure_batchnorms(lambda bn, moments: (moments.mean, moments.var))
