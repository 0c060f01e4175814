"""Align with the reference, and take out what the errors of a row's weights have in common."""

from __future__ import annotations

from torch import Tensor

from aihwkit_nabn.calibration.method import register_calibration_method
from aihwkit_nabn.calibration.methods.paired import Paired, matching_scale
from aihwkit_nabn.calibration.pair_moments import ANALOG, COMMON, DIGITAL, Pair
from aihwkit_nabn.calibration.pairs import align_with_reference
from aihwkit_nabn.calibration.session import CalibrationSession

# The common part is held back as if so many values, and a thousandth of those seen, had said that there is none.
_STRENGTH = 8.0
_RIDGE = 1e-3
# Least share of the chip's variance that is taken to be left without the common part.
_LEAST_LEFT = 0.01


@register_calibration_method("common_mode")
class CommonMode(Paired):
    """``y = s (x - c (m - mu_m) - mu_a) + mu_d``: as ``paired``, without the part c m that follows the inputs' mean m.

    Behind a ReLU a layer's inputs are positive and rise and fall together, so the largest part of what wrong weights do
    goes with their mean: a row whose weights are too large on average adds that average times the inputs' sum. No scale
    or offset takes this out. The sum does, which a quantised network adds up for its zero points anyway.

    c is read from the regression of the chip's output on the reference's and m, in which noise drawn anew for every
    output does no harm; s is that of ``paired`` for what is left.

    Layers where adding up the inputs would take more than a quarter of the layer's own work (depthwise convolutions,
    linear layers of up to four outputs), deformable convolutions and aihwkit's own layers are aligned as with
    ``paired``.

    Args:
        shrink: As in ``paired``.

    Source: ours.
    """

    summary = "removes what follows the mean of a layer's inputs, then aligns as paired does"

    def rule(self, pair: Pair) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return scale, offset and input gain, each ``[channels]``; no gain where the layer has no input mean."""
        common, joint = pair.common, pair.joint
        if common is None or joint.count == 0:
            return super().rule(pair)
        found = joint.correlations()
        with_reference, with_mean = found[ANALOG, DIGITAL], found[ANALOG, COMMON]
        reference_with_mean = found[DIGITAL, COMMON]
        # In standard deviations of the chip's output and of the mean. A reference that does not vary says nothing.
        held_back = 1.0 + _RIDGE + _STRENGTH / joint.count
        share = with_mean.addcmul(with_reference, reference_with_mean, value=-1.0)
        share = share.div_(held_back - reference_with_mean.square()).mul_(found[DIGITAL, DIGITAL])
        left = share.square().addcmul_(share, with_mean, value=-2.0).add_(1.0).clamp_(min=_LEAST_LEFT).sqrt_()
        correlation = pair.correlation.addcmul(share, reference_with_mean, value=-1.0).div_(left).clamp_(0.0, 1.0)
        scale = (matching_scale(pair) / left).mul_(correlation.pow_(self.shrink))
        unit = (pair.analog.var / common.var).nan_to_num_(0.0, posinf=0.0).sqrt_()
        gain = unit.mul_(scale).mul_(share).neg_()
        offset = pair.digital.mean.addcmul(scale, pair.analog.mean, value=-1.0)
        return scale, offset.addcmul_(gain, common.mean, value=-1.0), gain

    def align(self, session: CalibrationSession) -> dict[str, Pair]:
        """One pass of the reference and one of the chip; returns the layers' moments."""
        return align_with_reference(session, self.rule, wants_joint=True, wants_common=True)
