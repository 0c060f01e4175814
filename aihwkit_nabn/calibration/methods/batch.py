"""Normalise every batch with its own statistics."""

from __future__ import annotations

from torch import Tensor

from aihwkit_nabn.calibration.batchnorms import check_batchnorms
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


def batch_statistics(x: Tensor, bn: NoiseAwareBatchNorm) -> Statistics:
    """Return mean and biased variance of `x`; the trained ones where a single value per channel has no spread."""
    now = Moments.of(x, 1)
    mean, var = bn.trained_statistics()
    return (mean, var) if now.count < 2 else (now.mean.to(mean), now.var.to(var))


@register_calibration_method("batch")
class Batch(CalibrationMethod):
    """Normalise each batch with its own mean and variance at inference; nothing is calibrated beforehand.

    Needs large, mixed test batches: a prediction depends on its neighbours.

    Source: prediction-time batch normalization, Nado et al. 2020.
    """

    summary = "normalises each batch with its own statistics during inference; nothing is stored"
    needs_batches = False
    replaces_statistics = True

    def calibrate(self, session: CalibrationSession) -> None:
        """Switch every BatchNorm over."""
        check_batchnorms(session)
        for bn in session.batchnorms.values():
            bn.live = batch_statistics
