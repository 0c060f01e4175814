"""Follow the statistics while the chip works."""

from __future__ import annotations

from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.calibration.batchnorms import check_batchnorms, follow_batchnorms
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


class RunningStatistics:
    """Live statistics of one BatchNorm: a running average, kept in its calibrated mean and variance.

    Args:
        momentum: Weight of a new batch in the long run. The first batches weigh more, 1/2, 1/3, 1/4 ..., as if the
            trained statistics were one batch, so that a new chip is caught up with at once.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.n_batches = 0

    def __call__(self, x: Tensor, bn: NoiseAwareBatchNorm) -> Statistics:
        """Take the input at hand into the average, and return the average.

        Raises:
            NabnError: torch records operations for later.
        """
        native.check_runs("a BatchNorm that follows its inputs (method 'online')", "call freeze_calibration(model)", x)
        return self.take_in(Moments.of(x, 1), bn)

    def take_in(self, now: Moments, bn: NoiseAwareBatchNorm) -> Statistics:
        """Take one call's moments into the average, and return it; single values and NaN leave it as it is."""
        mean, var = bn.calibrated_mean, bn.calibrated_var
        if mean is None or var is None:
            mean, var = bn.trained_statistics()
            self.n_batches = 0
        if now.count >= 2 and now.is_finite:
            weight = max(self.momentum, 1.0 / (self.n_batches + 2))
            mean = mean + weight * (now.mean.to(mean) - mean)
            var = var + weight * (now.var.to(var) - var)
            bn.calibrated_mean, bn.calibrated_var = mean, var
            self.n_batches += 1
        return mean, var


@register_calibration_method("online")
class Online(CalibrationMethod):
    """At every inference the running average takes in the batch and then normalises it, in one forward pass.

    For noise that moves while the chip works. ``report.freeze()`` stops it and keeps the statistics. Calibration
    batches are not needed; where some are given, the average starts from them.

    Args:
        momentum: Weight of a new batch in the long run, in (0, 1].

    Source: our reading of the "variational noise" of Tsai et al., arXiv 2007.03230; normalising with the updated
    average in one pass as in RoTTA (Yuan et al. 2023).
    """

    summary = "follows the inputs' statistics during inference with a running average"
    needs_batches = False
    replaces_statistics = True

    def __init__(self, momentum: float = 0.1) -> None:
        meaning = "the weight of a new batch"
        self.momentum = check_number("momentum", momentum, exclusive_minimum=0.0, maximum=1.0, meaning=meaning)

    def calibrate(self, session: CalibrationSession) -> None:
        """Start the averages from the calibration batches if there are any, and switch every BatchNorm over."""
        check_batchnorms(session)
        followers = {id(bn): RunningStatistics(self.momentum) for bn in session.batchnorms.values()}
        if session.has_batches:
            follow_batchnorms(session, lambda bn, now: followers[id(bn)].take_in(now, bn))
        for bn in session.batchnorms.values():
            bn.live = followers[id(bn)]
