"""Align with the reference, and take out what the errors of a row's weights have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from aihwkit_nabn.calibration.method import register_calibration_method
from aihwkit_nabn.calibration.methods.paired import Paired, matching_scale
from aihwkit_nabn.calibration.pairs import ANALOG, COMMON, DIGITAL, Pair, align_with_reference
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number

# Held back in the least squares as if so many values had been seen where the input mean says nothing.
_STRENGTH = 8.0
_RIDGE = 1e-3


@register_calibration_method("common_mode")
class CommonMode(Paired):
    """``y = s (x - mu_a) + g (m - mu_m) + mu_d``: as ``paired``, and a part g that follows the layer's input mean m.

    After a ReLU all inputs are positive and rise and fall together, so the largest part of a weight error's effect
    goes with their mean: a row whose weights came out too large on average adds that average times the inputs' sum.
    No scale or offset takes this out, but the sum, which a quantised network adds up for its zero points anyway, does.
    s and g are the best linear estimate of the reference's output from the chip's and m, times ``R ** (shrink - 1)``
    with R the multiple correlation: at 1 least squares, at 0 the reference's spread.

    A layer whose inputs serve fewer than eight outputs (depthwise convolutions, a single output), one of aihwkit's own
    layers, or a deformable convolution, whose sum would cost as much as it does, is aligned as with ``paired``.

    Args:
        shrink: As above.

    Source: ours.
    """

    summary = "paired, and what follows the mean of each layer's inputs taken out"

    def __init__(self, shrink: float = 0.5) -> None:
        super().__init__(check_number("shrink", shrink, minimum=0.0, maximum=1.0))

    def rule(self, pair: Pair) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return scale, offset and input gain, each ``[channels]``; no gain where the layer has no input mean."""
        scale, offset = super().rule(pair)
        common, joint = pair.common, pair.joint
        if common is None or joint.count == 0:
            return scale, offset
        with_mean, target_with_mean = joint.correlation(ANALOG, COMMON), joint.correlation(DIGITAL, COMMON)
        ridge = 1.0 + _RIDGE + _STRENGTH / joint.count
        determinant = ridge - with_mean.square()
        own = (ridge * pair.correlation - with_mean * target_with_mean) / determinant
        shared = (target_with_mean - with_mean * pair.correlation) / determinant
        explained = (own * pair.correlation + shared * target_with_mean).clamp(max=1.0)
        usable = (own > 0) & (explained > 0) & (common.var > 0) & (pair.analog.var > 0)
        factor = explained.clamp(min=1e-12).sqrt() ** (self.shrink - 1.0)
        tiny = torch.finfo(torch.float64).tiny
        gain = shared * factor * (pair.digital.var / common.var.clamp(min=tiny)).sqrt()
        gain = torch.where(usable, gain, torch.zeros_like(gain))
        scale = torch.where(usable, own * factor * matching_scale(pair), scale)
        return scale, pair.digital.mean - scale * pair.analog.mean - gain * common.mean, gain

    def align(self, session: CalibrationSession) -> dict[str, Pair]:
        """One pass of the reference and one of the chip; returns the layers' moments."""
        return align_with_reference(session, self.rule, wants_joint=True, wants_common=True)
