"""Align every analog layer's output with the reference's on the same inputs."""

from __future__ import annotations

from torch import Tensor

from aihwkit_nabn.calibration.method import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration.pair_moments import Pair
from aihwkit_nabn.calibration.pairs import align_with_reference
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number


def matching_scale(pair: Pair, strength: float = 2.0) -> Tensor:
    """Return ``sqrt(v_d / v_a)`` per channel, held towards 1 as if `strength` values with ratio 1 had been seen.

    A channel that does not vary on the chip keeps scale 1: there is nothing to read its scale from.
    """
    ratio = (pair.digital.var / pair.analog.var).nan_to_num_(1.0, posinf=1.0)
    n = min(pair.digital.count, pair.analog.count)
    return ratio.mul_(n / (n + strength)).add_(strength / (n + strength)).clamp_(max=_LARGEST**2).sqrt_()


_LARGEST = 10.0


@register_calibration_method("paired")
class Paired(CalibrationMethod):
    """``y = s (x - mu_a) + mu_d`` at every analog layer's output, ``s = sqrt(v_d / v_a) * rho ** shrink``.

    mu and v are the channel's mean and variance over the calibration set, of the chip (a) and of the reference (d) on
    the same inputs; rho is the correlation of the two. It does not matter whether a BatchNorm follows.

    Args:
        shrink: Power of the correlation in the scale. 0 restores the reference's spread; 1 is the best linear estimate
            of the reference's output, which has less spread. What each layer loses of it adds up: 0.5 brings a
            ResNet-20 0 to 2 points, on training images, and takes 20 from EfficientNet-Lite0's 50 layers.

    Source: ours.
    """

    summary = "aligns each analog layer's mean and spread with the reference's on the same inputs"
    needs_reference = True

    def __init__(self, shrink: float = 0.0) -> None:
        self.shrink = check_number("shrink", shrink, minimum=0.0, maximum=1.0, meaning="the power of the correlation")

    def rule(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return scale and offset, each ``[channels]``."""
        scale = matching_scale(pair)
        if self.shrink:
            scale = scale * pair.correlation.clamp(min=0.0) ** self.shrink
        return scale, pair.digital.mean.addcmul(scale, pair.analog.mean, value=-1.0)

    def align(self, session: CalibrationSession) -> dict[str, Pair]:
        """One pass of the reference and one of the chip; returns the layers' moments."""
        return align_with_reference(session, self.rule, wants_joint=self.shrink > 0)

    def calibrate(self, session: CalibrationSession) -> None:
        """Align every analog layer."""
        self.align(session)
