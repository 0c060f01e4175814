"""What a search for layers to keep digital has found, as tables and plots take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aihwkit_nabn.results.statistics import Estimate, estimate

ALL_ON_TILES, FIRST_LAST, CORRECTED, FOUND = (
    "everything on tiles",
    "first and last digital",
    "first, last, and ranks",
    "placement",
)
"""The rows of a verification."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer, or layers that go together, of the order in which layers become digital.

    Attributes:
        name: What `convert_to_noise_aware` would exclude; several are joined by commas.
        disagreement: What it alone on the chip disturbs the outputs by, in parts of their variance.
        share: Its multiplications in parts of the network's.
    """

    name: str
    disagreement: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A placement that was measured.

    Attributes:
        label: Of a row of the verification; of a point of the search, the calibration method.
        kept: Number of digital layers.
        layers: Their share of the network's multiplications.
        corrections: The share that the chips' corrections take, mean over the chips.
        losses: One per chip, in the metric's own unit.
    """

    label: str
    kept: int
    layers: float
    corrections: float
    losses: Sequence[float]

    @property
    def share(self) -> float:
        """All digital multiplications, in parts of the network's."""
        return self.layers + self.corrections

    @property
    def loss(self) -> Estimate:
        """The loss over the chips."""
        return estimate(self.losses)


@dataclass(frozen=True, kw_only=True)
class PlacementResult:
    """All that was measured.

    Attributes:
        metric: What losses are of.
        digital: The digital model's value on the test images.
        bound: The loss that is allowed.
        method: The calibration method of the placement, as text.
        scenario: The noise setting.
        steps: The order of the layers under that method.
        digital_layers: Those that the placement keeps digital.
        met: Whether the placement was within the bound on the search chips.
        searched: The points of the search, of all budgets.
        rows: The verification, on other chips and the test images.
        notes: What has to be said about it.
    """

    metric: str
    digital: float
    bound: float
    method: str
    scenario: str
    steps: Sequence[Step]
    digital_layers: Sequence[str]
    met: bool
    searched: Sequence[Point]
    rows: Sequence[Point]
    notes: Sequence[str] = ()

    @property
    def placement(self) -> Point:
        """The row of the placement."""
        return next(row for row in self.rows if row.label == FOUND)
