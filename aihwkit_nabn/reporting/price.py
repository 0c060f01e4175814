"""What each row of a comparison costs, and whether calibration after training is worth it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.text import Text

from aihwkit_nabn.reporting.tables import Entry, Table
from aihwkit_nabn.reporting.text import number_style
from aihwkit_nabn.results import Estimate, Results, paired_difference

_HEADERS = ["row", "images", "labels", "images passed", "training, s", "calibration, s per chip"]
_NOTE = (
    "Images passed: training images times epochs. Training runs once per noise setting (mean over settings), "
    "calibration once per chip."
)


@dataclass(frozen=True, kw_only=True)
class AfterTraining:
    """Calibration after training against training alone, on the same chips of one scenario.

    Attributes:
        scenario: Its name.
        label: The row with calibration.
        difference: Its metric minus that of training alone, paired by chip.
    """

    scenario: str
    label: str
    difference: Estimate

    @property
    def at_least_as_good(self) -> bool:
        """Whether the mean over chips is not below that of training alone."""
        return self.difference.mean >= -1e-9


def after_training(result: Results, metric: str | None = None) -> list[AfterTraining]:
    """Compare every row "training + calibration" with its training alone, in every scenario.

    Args:
        result: Of a comparison with hardware-aware training.
        metric: Which one; default: the first.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    values: dict[tuple[str, str], dict[int | None, float]] = {}
    names: dict[str, str] = {}
    for record in result.records:
        values.setdefault((record.scenario, record.method), {})[record.chip_seed] = record.metrics[name]
        names[record.method] = record.method_name
    labels = {method_name: label for label, method_name in names.items()}
    found = []
    for (scenario, label), chips in values.items():
        alone_label = labels.get(names[label].partition("+")[0]) if "+" in names[label] else None
        alone = values.get((scenario, alone_label)) if alone_label is not None else None
        if alone is not None and set(alone) == set(chips):
            difference = paired_difference([chips[c] for c in chips], [alone[c] for c in chips])
            found.append(AfterTraining(scenario=scenario, label=label, difference=difference))
    return found


def verdict(result: Results, metric: str | None = None) -> list[str]:
    """Return one line per calibration method that was tried after training: what it added, and where it did not."""
    name = result.metric_name(metric)
    style = number_style(result.cells(name), result.digital[name])
    style = replace(style, decimals=max(style.decimals, 2))  # differences are small

    def signed(value: float) -> str:
        return style.number(value, signed=True)

    lines = []
    entries = after_training(result, name)
    for label in dict.fromkeys(entry.label for entry in entries):
        mine = [entry for entry in entries if entry.label == label]
        means = [entry.difference.mean for entry in mine]
        below = [entry for entry in mine if not entry.at_least_as_good]
        line = f"{label}, against the same training alone, {name}: {signed(min(means))} to {signed(max(means))}; "
        if not below:
            line += f"at least as good in all {len(mine)} scenarios."
        else:
            named = ", ".join(
                f"{e.scenario} ({signed(e.difference.mean)} [{signed(e.difference.low)}, {signed(e.difference.high)}])"
                for e in below
            )
            chance = sum(entry.difference.high < 0 for entry in below)
            line += (
                f"below it in {len(below)} of {len(mine)} scenarios, beyond what chips vary by in "
                f"{chance or 'none'}: {named}."
            )
        lines.append(line)
    return lines


def price_rows(result: Results) -> list[dict[str, Any]]:
    """Return the prices in a result's settings, one mapping per row; none where it holds no comparison."""
    rows = result.settings.get("price")
    return rows if isinstance(rows, list) else []


def markdown_price(result: Results) -> str:
    """Return images, labels and seconds of each row as GitHub markdown."""
    return f"{_price_table(result).markdown()}\n\n{_NOTE}\n"


def print_price(result: Results, console: Console) -> None:
    """Print images, labels and seconds of each row, and what calibration after training adds."""
    _price_table(result).print(console)
    for line in verdict(result):
        console.print(Text(line))


def _price_table(result: Results) -> Table:
    def seconds(value: float) -> str:
        return "" if not value else f"{value:.2f}" if value < 10 else f"{value:.0f}"

    rows = []
    for row in price_rows(result):
        texts = [f"{row[key]:,}" for key in ("images", "labels", "images_passed")]
        texts += [seconds(row[key]) for key in ("seconds_training", "seconds_calibration")]
        rows.append((row["label"], [Entry(text=text) for text in texts]))
    return Table(caption="price", header=_HEADERS, rows=rows, notes=[_NOTE])
