"""The report's tables as plain values; the template does the markup."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from aihwkit_nabn.reporting.text import best_methods, footnotes, number_style
from aihwkit_nabn.results import Cell, Results
from aihwkit_nabn.results.metrics import detail_metrics

_UNDEFINED = -1.0  # COCO's word for a size that no object has
_SIZES = {"s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of a table: its text, and what sets it apart (``"best"``, ``"worse"``, or nothing)."""

    text: str
    mark: str = ""
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column holds row headers."""

    caption: str
    header: list[str]
    rows: list[tuple[str, list[Entry]]]
    notes: list[str] = field(default_factory=list)


def overview(result: Results, metric: str) -> Table:
    """Return one row per method, digital and uncalibrated first, and one column per scenario."""
    cells = result.cells(metric)
    style = number_style(cells, result.digital[metric])
    best = best_methods(cells)
    digital = Entry(text=style.number(result.digital[metric]))
    rows = [("digital", [digital] * len(result.scenarios))]
    for method, mine in _rows(result, cells):
        entries = []
        for cell in mine:
            if cell is None:
                entries.append(Entry(text=""))
                continue
            text = style.number(cell.estimate.mean) if result.n_chips == 1 else style.estimate(cell.estimate)
            winner = method in best.get(cell.record.scenario, ())
            mark = "worse" if cell.hurts else "best" if winner else ""
            entries.append(Entry(text=text + (f" {style.mark}" if cell.hurts else ""), mark=mark))
        rows.append((method, entries))
    notes = ["Bold: the best calibration method of a column."]
    notes += footnotes(result, style, cells)
    return Table(caption=f"{metric}, higher is better", header=["method", *result.scenarios], rows=rows, notes=notes)


def recovered(result: Results, metric: str) -> Table | None:
    """Return which share of the lost metric each method brings back; None where no method was tried."""
    cells = result.cells(metric)
    style = number_style(cells, result.digital[metric])
    rows = []
    for method, mine in _rows(result, cells):
        if any(cell is not None and not cell.calibrated for cell in mine):
            continue
        entries = [
            Entry(text="", share=None)
            if cell is None
            else Entry(
                text=style.share(cell.recovered), share=None if cell.recovered != cell.recovered else cell.recovered
            )
            for cell in mine
        ]
        rows.append((method, entries))
    if not rows:
        return None
    return Table(
        caption="Share of the loss that came back: 100% is the digital network, 0% the chip as it is",
        header=["method", *result.scenarios],
        rows=rows,
        notes=["A dash: one chip, or a loss that could not be told from chance, so there is no share to give."],
    )


def prices(result: Results) -> Table:
    """Return what each method asks for: images, labels, seconds per chip."""
    sets = {entry.get("label"): entry.get("batches") for entry in result.settings.get("methods", [])}
    rows = []
    for method in result.methods:
        mine = [record for record in result.records if record.method == method]
        seconds = statistics.fmean(record.seconds_calibration for record in mine)
        images = sorted({record.n_calibration_samples for record in mine})
        kind = {"augmented": ", as in training", "plain": ", as at test time"}.get(sets.get(method) or "", "")
        count = " to ".join(str(value) for value in {images[0]: 0, images[-1]: 0}) if images[-1] else "none"
        rows.append(
            (
                method,
                [
                    Entry(text=count + (kind if images[-1] else "")),
                    Entry(text="none"),
                    Entry(text=f"{seconds:.2f}" if mine[0].method_name != "none" else "0"),
                ],
            )
        )
    return Table(
        caption="What each method asks for, per chip",
        header=["method", "images", "labels", "seconds"],
        rows=rows,
        notes=["Seconds are the mean over all chips, on the computer that ran the simulation; they compare methods."],
    )


def other_metrics(result: Results, main: str) -> list[Table]:
    """Return one table per scenario with the other metrics, the sizes spelled out; none where there is one metric."""
    shown = [
        name
        for name in result.metrics
        if name not in detail_metrics(result.metrics) and result.digital[name] != _UNDEFINED
    ]
    if len(shown) < 2:
        return []
    return _metric_tables(result, [(name, _spelled(name)) for name in shown], "metric")


def details(result: Results, main: str) -> list[Table]:
    """Return one table per scenario with the parts of the main metric, such as one per class."""
    names = detail_metrics(result.metrics)
    parts = [(name, name.rpartition("/")[2]) for name, parent in names.items() if parent == main]
    return _metric_tables(result, parts, "class") if parts else []


def _metric_tables(result: Results, names: Sequence[tuple[str, str]], title: str) -> list[Table]:
    tables = []
    columns = {name: {(c.record.scenario, c.record.method): c for c in result.cells(name)} for name, _ in names}
    for scenario in result.scenarios:
        methods = [m for m in result.methods if (scenario, m) in next(iter(columns.values()))]
        rows = []
        for name, label in names:
            cells = [columns[name][scenario, method] for method in methods]
            style = number_style(cells, result.digital[name])
            means = [Entry(text=style.number(c.estimate.mean), mark="worse" if c.hurts else "") for c in cells]
            rows.append((label, [Entry(text=style.number(result.digital[name])), *means]))
        tables.append(Table(caption=scenario, header=[title, "digital", *methods], rows=rows))
    return tables


def _spelled(name: str) -> str:
    stem, _, size = name.rpartition("_")
    return f"{stem}, {_SIZES[size]} objects" if stem.endswith("mAP") and size in _SIZES else name


def _rows(result: Results, cells: Sequence[Cell]) -> list[tuple[str, list[Cell | None]]]:
    by_place = {(cell.record.method, cell.record.scenario): cell for cell in cells}
    return [(method, [by_place.get((method, scenario)) for scenario in result.scenarios]) for method in result.methods]
