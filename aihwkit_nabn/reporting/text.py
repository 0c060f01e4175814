"""Numbers as people read them: how many digits, what stands for a missing interval, footnotes."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aihwkit_nabn.results import DIGITAL, UNVERIFIED, Cell, Estimate, Results

# Numbers that stand for themselves, not those inside a name.
_NUMBER = re.compile(r"(?<![\w.,])(?:inf|\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w])")

WORSE = "worse than uncalibrated: the 95% interval of the difference, paired by chip, lies below 0"


@dataclass(frozen=True, kw_only=True)
class NumberStyle:
    """How the numbers of one table are written.

    Attributes:
        decimals: Digits after the point.
        plus_minus: Sign before the half-width.
        mark: Sign after a number that a footnote explains.
    """

    decimals: int
    plus_minus: str = "±"
    mark: str = "†"

    def number(self, value: float, *, signed: bool = False) -> str:
        """Return the value, or ``"-"`` for NaN."""
        if math.isnan(value):
            return "-"
        text = f"{value:+.{self.decimals}f}" if signed else f"{value:.{self.decimals}f}"
        # -0.04 with one decimal would read "-0.0".
        return text.replace("-", "+" if signed else "", 1) if float(text) == 0 and text.startswith("-") else text

    def estimate(self, value: Estimate, *, signed: bool = False) -> str:
        """Return mean and half-width of the interval; of one chip, which has none, the mean alone."""
        if math.isnan(value.half_width):
            return self.number(value.mean, signed=signed)
        return f"{self.number(value.mean, signed=signed)} {self.plus_minus} {self.number(value.half_width)}"

    def share(self, value: float) -> str:
        """Return a share in percent, or ``"-"`` for NaN."""
        return "-" if math.isnan(value) else f"{100 * value:.0f}%"


def number_style(cells: Iterable[Cell], digital: float, *, ascii_only: bool = False) -> NumberStyle:
    """Return a style that suits: 91.6 for percents, 0.449 for fractions, a digit more for tight intervals."""
    listed = list(cells)
    largest = max(abs(value) for value in [digital, *(cell.estimate.mean for cell in listed)])
    decimals = 1 if largest > 1.5 else 3
    widths = [cell.estimate.half_width for cell in listed if cell.estimate.half_width > 0]
    if widths and statistics.median(widths) < 0.5 * 10.0**-decimals:
        decimals += 1
    if ascii_only:
        return NumberStyle(decimals=decimals, plus_minus="+/-", mark="*")
    return NumberStyle(decimals=decimals)


def caption(result: Results, style: NumberStyle, *, turned: bool) -> str:
    """Return what the numbers of a table are; a turned one has the differences too."""
    chips = result.n_chips
    if chips == 1:
        text = "1 chip: no interval. Measure more chips to see how much they differ."
    else:
        text = f"Mean over {chips} chips {style.plus_minus} half of the 95% interval (Student t over the chips)."
    if turned:
        text += (
            " Difference: to uncalibrated, paired by chip. Recovered: share of the loss that came back"
            f"{', not given for one chip' if chips == 1 else ', - where the loss is within the interval'}."
        )
    return text


def missing_note(result: Results) -> str:
    """Return what stands in place of metrics that have no value."""
    return f"Not shown: {', '.join(result.missing)}. The test images have no such objects (COCO reports -1)."


def footnotes(result: Results, style: NumberStyle, cells: Sequence[Cell]) -> list[str]:
    """Return what must be said under a table: what hurts, what calibrating noted, what was not verified."""
    notes = [f"{style.mark} {WORSE}."] if any(cell.hurts for cell in cells) else []
    if any(cell.record.method_name == "drift_compensation" for cell in cells):
        notes.append("uncalibrated: without drift compensation, which has a row of its own; all other rows have it.")
    measured = Counter(record.method for record in result.records)
    said: dict[tuple[str, str], list[str]] = {}
    for record in result.records:
        for note in record.note.split("; ") if record.note else ():
            said.setdefault((record.method, _NUMBER.sub("", note)), []).append(note)
    for (method, _), same in said.items():
        notes.append(f"{method}: {_merged(same)} ({len(same)} of {measured[method]} measurements).")
    texts = (result.settings.get("conversion") or {}).values()
    lines = dict.fromkeys(line for text in texts for line in str(text).splitlines() if line.startswith(UNVERIFIED))
    return [*notes, *(f"{line[0].upper()}{line[1:]}." for line in lines)]


def _merged(notes: list[str]) -> str:
    """Return notes that differ in their numbers as one, with the range of each number."""
    found = list(zip(*(_NUMBER.findall(note) for note in notes), strict=True))
    ranges = iter(sorted(set(texts), key=lambda text: float(text.replace(",", ""))) for texts in found)

    def ranged(match: re.Match[str]) -> str:
        values = next(ranges)
        return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"

    return _NUMBER.sub(ranged, notes[0])


def best_methods(cells: Iterable[Cell]) -> dict[str, set[str]]:
    """Return the labels of the best calibration methods by scenario; none where all come out the same."""
    rows: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.calibrated and cell.record.method_name != DIGITAL:  # a sweep's digital model on shifted images
            rows.setdefault(cell.record.scenario, {})[cell.record.method] = cell.estimate.mean
    best = {}
    for scenario, means in rows.items():
        winners = {label for label, mean in means.items() if math.isclose(mean, max(means.values()), rel_tol=1e-9)}
        best[scenario] = winners if len(winners) < len(means) or len(means) == 1 else set()
    return best
