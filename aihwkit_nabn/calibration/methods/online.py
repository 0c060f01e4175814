"""Follow the statistics while the chip works."""

from __future__ import annotations

from torch import Tensor

from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError, check_number
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


class RunningStatistics:
    """Live statistics of one BatchNorm: a running average, kept in its calibrated mean and variance.

    Args:
        momentum: Weight of a new batch in the long run. The first batches weigh more, 1/2, 1/3, 1/4 ..., as if the trained
            statistics were one batch, so that a new chip is caught up with at once.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.n_batches = 0

    def __call__(self, x: Tensor, bn: NoiseAwareBatchNorm) -> Statistics:
        """Take `x` into the average, and return the average."""
        if bn.calibrated_mean is None or bn.calibrated_var is None:
            bn.set_calibrated(*bn.trained_statistics())
            self.n_batches = 0
        mean, var = bn.calibrated_mean, bn.calibrated_var
        assert mean is not None and var is not None
        now = Moments.of(x, 1)
        if now.count >= 2:
            weight = max(self.momentum, 1.0 / (self.n_batches + 2))
            mean = mean + weight * (now.mean.to(mean) - mean)
            var = var + weight * (now.var.to(var) - var)
            bn.calibrated_mean, bn.calibrated_var = mean, var
            self.n_batches += 1
        return mean, var


@register_calibration_method("online")
class Online(CalibrationMethod):
    """At every inference the running average takes in the batch and then normalises it, in one forward pass.

    For noise that moves while the chip works. ``report.freeze()`` stops it and keeps the statistics. Calibration batches are
    not needed; where some are given, the average starts from them.

    Args:
        momentum: Weight of a new batch in the long run, in (0, 1].

    Source: our reading of the "variational noise" of Tsai et al., arXiv 2007.03230; normalising with the updated average in one
    pass as in RoTTA (Yuan et al. 2023).
    """

    summary = "running average that follows the inputs during inference"
    needs_batches = False
    replaces_statistics = True

    def __init__(self, momentum: float = 0.1) -> None:
        self.momentum = check_number("momentum", momentum, exclusive_minimum=0.0, maximum=1.0)

    def calibrate(self, session: CalibrationSession) -> None:
        """Switch every BatchNorm over, and run the calibration batches if there are any."""
        if not session.batchnorms:
            raise CalibrationError("the model has no BatchNorm; use method='paired', which needs none")
        for bn in session.batchnorms.values():
            bn.live = RunningStatistics(self.momentum)
        session.run_through()
