"""The result in words, made from its figures: what the chip costs, what comes back, how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from aihwkit_nabn.reporting.text import NumberStyle, best_methods, number_style
from aihwkit_nabn.results import Cell, Results

_LISTED = 4


def summarize(result: Results, metric: str | None = None) -> list[str]:
    """Return a few sentences about a metric.

    Args:
        result: The evaluation.
        metric: Which one; default: the first.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    cells = result.cells(name)
    style = number_style(cells, result.digital[name])
    unaided = [cell for cell in cells if not cell.calibrated]
    sentences = [_cost(name, result.digital[name], unaided, style)]
    if any(cell.calibrated for cell in cells):
        sentences += [_best(cells, unaided, style), _harm(cells, result.n_chips, style)]
    else:
        sentences.append("No calibration method was tried.")
    return [*sentences, _certainty(result, unaided, style)]


def _cost(name: str, digital: float, unaided: Sequence[Cell], style: NumberStyle) -> str:
    worst = min(unaided, key=lambda cell: cell.estimate.mean)
    mildest = max(unaided, key=lambda cell: cell.estimate.mean)
    text = f"The digital network reaches {name} = {style.number(digital)}. On simulated chips as programmed"
    if len(unaided) == 1:
        return f"{text}, under {worst.record.scenario}, {_fall(worst, digital, style)}."
    return (
        f"{text}, {_fall(worst, digital, style)} under {worst.record.scenario}, the hardest of {len(unaided)} "
        f"settings, and {_fall(mildest, digital, style)} under {mildest.record.scenario}, the mildest."
    )


def _fall(cell: Cell, digital: float, style: NumberStyle) -> str:
    value = style.estimate(cell.estimate)
    loss = digital - cell.estimate.mean
    if loss <= 0:
        return f"it is {value}, no loss"
    share = f" ({100 * loss / digital:.0f}% of it is lost)" if digital > 0 else ""
    return f"it is {value}{share}"


def _best(cells: Sequence[Cell], unaided: Sequence[Cell], style: NumberStyle) -> str:
    winners = best_methods(cells)
    calibrated = [cell for cell in cells if cell.calibrated]
    labels = list(dict.fromkeys(cell.record.method for cell in calibrated))
    gain = {
        label: statistics.fmean(
            cell.difference.mean for cell in calibrated if cell.record.method == label and cell.difference
        )
        for label in labels
    }
    wins = {label: sum(label in winners.get(cell.record.scenario, ()) for cell in unaided) for label in labels}
    best = max(labels, key=lambda label: (wins[label], gain[label]))
    of = f"in {wins[best]} of {len(unaided)} settings" if len(unaided) > 1 else f"under {unaided[0].record.scenario}"
    text = f"The method with the best mean {of} is {best}" if len(labels) > 1 else f"The method tried is {best}"
    mine = [cell for cell in calibrated if cell.record.method == best]
    hardest = min(
        mine, key=lambda cell: next(c.estimate.mean for c in unaided if c.record.scenario == cell.record.scenario)
    )
    text += f"; under {hardest.record.scenario} it reaches {style.estimate(hardest.estimate)}"
    shares = [cell.recovered for cell in mine if not math.isnan(cell.recovered)]
    if not shares:
        return text + "."
    if len(shares) == 1:
        share = f"{shares[0]:.0%} of what the chips lost"
    else:
        middle = f"median {statistics.median(shares):.0%}"
        share = f"{min(shares):.0%} to {max(shares):.0%} of the loss ({middle})"
    where = ""
    if len(mine) > 1:
        where = f" where chips lose more than chance would explain ({len(shares)} of {len(mine)} settings)"
    return f"{text}. It brings back {share}{where}, without labels and without retraining."


def _harm(cells: Sequence[Cell], chips: int, style: NumberStyle) -> str:
    hurting = [cell for cell in cells if cell.hurts]
    if not hurting:
        if chips == 1:
            lower = [cell for cell in cells if cell.difference is not None and cell.difference.mean < 0]
            if not lower:
                return "No method is below the uncalibrated chip; with one chip that says little."
            return f"On this one chip {_list(lower, style)} below doing nothing; with one chip that may be chance."
        return "No method is worse than doing nothing in any setting, as far as these chips can tell."
    return f"Worse than doing nothing, beyond chance: {_list(hurting, style)}."


def _list(cells: Sequence[Cell], style: NumberStyle) -> str:
    grouped: dict[str, list[Cell]] = {}
    for cell in cells:
        grouped.setdefault(cell.record.method, []).append(cell)
    parts = []
    for label, mine in grouped.items():
        named = ", ".join(
            f"{cell.record.scenario} ({style.number(cell.difference.mean, signed=True)})"
            for cell in mine[:_LISTED]
            if cell.difference is not None
        )
        more = f" and {len(mine) - _LISTED} more" if len(mine) > _LISTED else ""
        parts.append(f"{label} under {named}{more}")
    return "; ".join(parts)


def _certainty(result: Results, unaided: Sequence[Cell], style: NumberStyle) -> str:
    if result.n_chips == 1:
        return "How sure: one chip per setting, so nothing is known of how chips differ. Measure five or more."
    widest = max(unaided, key=lambda cell: cell.estimate.half_width)
    return (
        f"How sure: {result.n_chips} simulated chips per setting, every method on the very same ones. Numbers are "
        f"the mean over chips ± half of its 95% interval, at most ±{style.number(widest.estimate.half_width)} for "
        f"uncalibrated chips ({widest.record.scenario}). The interval covers chance among chips, not the choice "
        "of the test images."
    )
