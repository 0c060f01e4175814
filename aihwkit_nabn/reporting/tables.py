"""Tables as plain values; the terminal, a document or a page shows them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from aihwkit_nabn.reporting.text import NumberStyle, best_methods, footnotes, number_style
from aihwkit_nabn.results import Results

_SIZES = {"s": "small", "m": "medium", "l": "large"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: Its text.
        best: Whether it is the best of its kind.
        worse: Whether it is worse than doing nothing.
        share: Length of a bar behind the text, from 0 to 1; None: no bar.
    """

    text: str = ""
    best: bool = False
    worse: bool = False
    share: float | None = None

    def rich(self) -> Text:
        """Return it for a terminal, on one line."""
        return Text(self.text, style=" ".join(["bold"] * self.best + ["red"] * self.worse), no_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column holds row headers.

    Attributes:
        caption: Above it.
        header: One text per column.
        rows: Each row's header and cells.
        notes: Below it.
        words: How many columns, from the left, hold words and no numbers.
    """

    caption: str
    header: list[str]
    rows: list[tuple[str, list[Entry]]]
    notes: list[str] = field(default_factory=list)
    words: int = 1

    def markdown(self) -> str:
        """Return header and rows as GitHub markdown."""
        numbers = len(self.header) - self.words
        lines = [_markdown_row(self.header), _markdown_row(["---"] * self.words + ["---:"] * numbers)]
        for name, entries in self.rows:
            lines.append(_markdown_row([name, *(f"**{e.text}**" if e.best else e.text for e in entries)]))
        return "\n".join(lines)

    def print(self, console: Console) -> None:
        """Print it, the notes below."""
        table = RichTable(
            title=Text(self.caption, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for place, head in enumerate(self.header):
            words = place < self.words
            table.add_column(
                Text(head), justify="left" if words else "right", overflow="fold", no_wrap=place > 0, vertical="bottom"
            )
        for name, entries in self.rows:
            table.add_row(Text(name), *(entry.rich() for entry in entries))
        console.print(table)
        for note in self.notes:
            console.print(Text(note, style="dim"))


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in texts) + " |"


def by_scenario(result: Results, metric: str, style: NumberStyle | None = None) -> Table:
    """Return one row per scenario and one column per method, the digital model first."""
    style, entries = _entries(result, metric, style)
    digital = Entry(text=style.number(result.digital[metric]))
    rows = [(s, [digital, *(entries.get((s, m), Entry()) for m in result.methods)]) for s in result.scenarios]
    return Table(caption=_caption(metric), header=[metric, "digital", *result.methods], rows=rows)


def by_method(result: Results, metric: str) -> Table:
    """Return one row per method, digital and uncalibrated first, and one column per scenario."""
    style, entries = _entries(result, metric)
    rows = [("digital", [Entry(text=style.number(result.digital[metric]))] * len(result.scenarios))]
    rows += [(m, [entries.get((s, m), Entry()) for s in result.scenarios]) for m in result.methods]
    notes = ["Bold: the best calibration method of a column.", *footnotes(result, style, result.cells(metric))]
    return Table(caption=_caption(metric), header=["method", *result.scenarios], rows=rows, notes=notes)


def with_differences(result: Results, metric: str, style: NumberStyle | None = None) -> Table:
    """Return one row per scenario and method, with the difference to uncalibrated and the share recovered."""
    style, entries = _entries(result, metric, style)
    digital = [Entry(text="digital"), Entry(text=style.number(result.digital[metric])), Entry(), Entry()]
    rows: list[tuple[str, list[Entry]]] = []
    last = None
    for cell in result.cells(metric):
        scenario, method = cell.record.scenario, cell.record.method
        if scenario != last:
            rows.append((scenario, digital))
        last = scenario
        difference = "" if cell.difference is None else style.estimate(cell.difference, signed=True)
        recovered = style.share(cell.recovered) if cell.calibrated else ""
        more = [Entry(text=difference), Entry(text=recovered)]
        rows.append(("", [Entry(text=method), entries[scenario, method], *more]))
    header = ["scenario", "method", metric, "difference", "recovered"]
    return Table(caption=_caption(metric), header=header, rows=rows, words=2)


def _caption(metric: str) -> str:
    return f"{metric} (higher is better)"


def _entries(
    result: Results, metric: str, style: NumberStyle | None = None
) -> tuple[NumberStyle, dict[tuple[str, str], Entry]]:
    """Return how numbers are written, and each cell by scenario and method."""
    cells = result.cells(metric)
    style = style or number_style(cells, result.digital[metric])
    best = best_methods(cells)
    entries = {}
    for cell in cells:
        scenario, method = cell.record.scenario, cell.record.method
        text = style.estimate(cell.estimate) + (style.mark if cell.hurts else "")
        entries[scenario, method] = Entry(text=text, best=method in best.get(scenario, ()), worse=cell.hurts)
    return style, entries


def recovered(result: Results, metric: str) -> Table | None:
    """Return which share of the lost metric each method brings back; None where no method was tried."""
    cells = [cell for cell in result.cells(metric) if cell.calibrated]
    style = number_style(cells, result.digital[metric])
    shares = {
        (cell.record.scenario, cell.record.method): Entry(
            text=style.share(cell.recovered), share=None if math.isnan(cell.recovered) else cell.recovered
        )
        for cell in cells
    }
    methods = dict.fromkeys(cell.record.method for cell in cells)
    rows = [(m, [shares.get((s, m), Entry()) for s in result.scenarios]) for m in methods]
    if not rows:
        return None
    return Table(
        caption="Share of the loss that comes back: 100% is the digital network, 0% the uncalibrated chip",
        header=["method", *result.scenarios],
        rows=rows,
        notes=["A dash: there is one chip only, or the loss could be chance."],
    )


def prices(result: Results) -> Table:
    """Return what each method needs: images, labels, seconds per chip."""
    sets = {entry.get("label"): entry.get("batches") for entry in result.settings.get("methods", [])}
    rows = []
    for method in result.methods:
        mine = [record for record in result.records if record.method == method]
        seconds = statistics.fmean(record.seconds_calibration for record in mine)
        images = sorted({record.n_calibration_samples for record in mine})
        kind = {"augmented": ", as in training", "plain": ", as at test time"}.get(sets.get(method) or "", "")
        count = " to ".join(str(value) for value in {images[0]: 0, images[-1]: 0}) + kind if images[-1] else "none"
        texts = [count, "none", f"{seconds:.2f}" if mine[0].method_name != "none" else "0"]
        rows.append((method, [Entry(text=text) for text in texts]))
    return Table(
        caption="What each method needs, per chip",
        header=["method", "images", "labels", "seconds"],
        rows=rows,
        notes=["Seconds: mean over all chips, on the computer that ran the simulation. Use them to compare methods."],
    )


def every_metric(result: Results) -> list[Table]:
    """Return one table per scenario with the metrics that are no parts, sizes spelled out; none where there is one."""
    names = result.main_metrics
    return _metric_tables(result, {name: _spelled(name) for name in names}, "metric") if len(names) > 1 else []


def class_by_class(result: Results, metric: str) -> list[Table]:
    """Return one table per scenario with the parts of a metric, such as one per class."""
    parts = {name: name.rpartition("/")[2] for name, parent in result.parts.items() if parent == metric}
    return _metric_tables(result, parts, "class") if parts else []


def _metric_tables(result: Results, names: dict[str, str], title: str) -> list[Table]:
    """Return one table per scenario with the means of metrics, each under its name for people."""
    columns = {name: {(c.record.scenario, c.record.method): c for c in result.cells(name)} for name in names}
    tables = []
    for scenario in result.scenarios:
        methods = [m for m in result.methods if (scenario, m) in next(iter(columns.values()))]
        rows = []
        for name, label in names.items():
            cells = [columns[name][scenario, method] for method in methods]
            style = number_style(cells, result.digital[name])
            means = [Entry(text=style.number(c.estimate.mean), worse=c.hurts) for c in cells]
            rows.append((label, [Entry(text=style.number(result.digital[name])), *means]))
        tables.append(Table(caption=scenario, header=[title, "digital", *methods], rows=rows))
    return tables


def _spelled(name: str) -> str:
    stem, _, size = name.rpartition("_")
    return f"{stem}, {_SIZES[size]} objects" if stem.endswith("mAP") and size in _SIZES else name
