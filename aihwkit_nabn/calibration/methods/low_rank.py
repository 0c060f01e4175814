"""Correct each layer's error along a few directions of its inputs, then align with the reference."""

from __future__ import annotations

from aihwkit_nabn.calibration.method import register_calibration_method
from aihwkit_nabn.calibration.methods.paired import Paired
from aihwkit_nabn.calibration.pair_moments import Pair
from aihwkit_nabn.calibration.pairs import align_with_reference
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import check_number


def check_budget(budget: object) -> float:
    """Return the budget of a method that corrects layers.

    Raises:
        NabnError: it is no share.
    """
    meaning = "the share of the network's multiplications that corrections may cost"
    return check_number("budget", budget, minimum=0.0, maximum=1.0, meaning=meaning)


@register_calibration_method("low_rank")
class LowRank(Paired):
    """``y = s (a(x) + U P b(x)) + o``: a low-rank correction of each layer's error, then scale and offset.

    b(x) are the layer's inputs, each channel's mean over the window that an output is computed from. U P is the
    reduced-rank ridge regression of the error, the reference's output minus the tiles', on b: the best one of its rank.
    Each layer's is found on the chip's own inputs, behind the final corrections of the layers before it, and so makes
    up for part of what these left over.

    Ranks are given out over the whole network, where they take off the largest share of a layer's signal per
    multiplication, until `budget` is used up. Layers with groups (depthwise ones) get a gain of their group's mean
    instead, one number per channel. s and o match the reference's mean and spread, exactly layer by layer. With fewer
    than three calibration images, nothing is corrected, and it is ``paired``.

    Args:
        budget: Share of the network's multiplications that the corrections may cost, in [0, 1].
        ridge: Of the regressions, in parts of the inputs' mean variance.

    Source: ours; reduced-rank regression, Izenman 1975.
    """

    summary = "corrects each layer's error along a few directions of its inputs, then aligns as paired does"

    def __init__(self, budget: float = 0.05, ridge: float = 0.01) -> None:
        super().__init__()
        self.budget = check_budget(budget)
        meaning = "the regressions' ridge in parts of the inputs' variance"
        self.ridge = check_number("ridge", ridge, exclusive_minimum=0.0, meaning=meaning)

    def align(self, session: CalibrationSession) -> dict[str, Pair]:
        """One pass of the reference with the chip's layers beside it, and one of the chip."""
        correct = (lambda errors: errors.give_ranks(self.budget, self.ridge)) if self.budget else None
        return align_with_reference(session, self.rule, correct=correct)
