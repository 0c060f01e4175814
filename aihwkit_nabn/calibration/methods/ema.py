"""Move the trained statistics towards the chip's by an exponential average: AdaBS."""

from __future__ import annotations

from aihwkit_nabn.calibration.batchnorms import follow_batchnorms, set_batchnorms
from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics


@register_calibration_method("ema")
class ExponentialAverage(CalibrationMethod):
    """``r = p r + (1 - p) b`` per batch with statistics b, from the trained statistics, ``p = remainder ** (1 / n)``.

    After n batches the trained statistics keep the weight `remainder`. Each batch is normalised with its own statistics
    while it passes, as BatchNorm does in training. The weights depend on the number of batches, so use a few even ones.

    Args:
        remainder: Weight left on the trained statistics, in (0, 1].

    Source: AdaBS, Joshi et al., Nature Communications 11, 2473 (2020).
    """

    summary = "moves the trained statistics towards the chip's, batch by batch (AdaBS)"
    replaces_statistics = True

    def __init__(self, remainder: float = 0.015) -> None:
        meaning = "the weight left on the trained statistics"
        self.remainder = check_number("remainder", remainder, exclusive_minimum=0.0, maximum=1.0, meaning=meaning)

    def calibrate(self, session: CalibrationSession) -> None:
        """Note every call's statistics, then average: p is known only when the batches have been counted."""
        history: dict[int, dict[int, Moments]] = {}

        def own(bn: NoiseAwareBatchNorm, now: Moments) -> Statistics:
            per_batch = history.setdefault(id(bn), {})
            # A layer that is called several times in a batch counts once, with the moments of all its calls.
            earlier = per_batch.setdefault(session.n_batches, Moments.empty(len(now.mean), now.mean.device))
            earlier.merge(now)
            return now.mean, now.var

        gathered = follow_batchnorms(session, own)
        keep = self.remainder ** (1.0 / session.n_batches)

        def average(bn: NoiseAwareBatchNorm, whole: Moments) -> Statistics:
            mean, var = (statistic.double() for statistic in bn.trained_statistics())
            for moments in history[id(bn)].values():
                mean = keep * mean + (1 - keep) * moments.mean
                var = keep * var + (1 - keep) * moments.var
            return mean, var

        set_batchnorms(session, gathered, average)
