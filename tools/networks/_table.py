"""The tables of the set: networks x settings against methods, and which cells fall behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.reporting.text import NumberStyle, number_style
from aihwkit_nabn.results import UNCALIBRATED, Cell, Estimate, estimate, paired_difference

POPULATION = "population"
BELOW_NONE, BELOW_POPULATION = "†", "‡"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network at one setting.

    Attributes:
        network: Its name.
        setting: Its name.
        result: What was measured.
    """

    network: str
    setting: str
    result: EvaluationResult

    @property
    def cells(self) -> dict[str, Cell]:
        """The methods' cells by label."""
        return {cell.record.method: cell for cell in self.result.cells()}

    @property
    def style(self) -> NumberStyle:
        """How its numbers are written."""
        return number_style(self.cells.values(), self.digital)

    @property
    def digital(self) -> float:
        """The digital model's value."""
        return self.result.digital[self.result.metric_name()]

    def behind(self, method: str) -> dict[str, Estimate]:
        """Return, by mark, how far a method lies below none or below population, beyond what chips vary by.

        That is: the 95% interval of the difference, paired by chip, lies below 0.
        """
        cell = self.cells[method]
        found = {BELOW_NONE: cell.difference, BELOW_POPULATION: self._against_population(method)}
        return {mark: value for mark, value in found.items() if value is not None and value.high < 0}

    def _against_population(self, method: str) -> Estimate | None:
        name = self.cells[method].record.method_name
        if POPULATION not in self.cells or name in (UNCALIBRATED, POPULATION):
            return None
        return paired_difference(self._values(method), self._values(POPULATION))

    def _values(self, method: str) -> list[float]:
        metric = self.result.metric_name()
        records = sorted((r for r in self.result.records if r.method == method), key=lambda r: r.chip_seed)
        return [record.metrics[metric] for record in records]


def write_tables(rows: Sequence[Row], unmeasured: Sequence[str] = ()) -> str:
    """Return the tables as GitHub markdown, the cells that fall behind listed below the first.

    Args:
        rows: What was measured.
        unmeasured: What was not, and why: a line each.
    """
    chips = max((row.result.n_chips for row in rows), default=0)
    spread = f"mean over {chips} chips ± half of the 95% interval" if chips > 1 else "one chip, so without interval"
    parts = ["# The set of networks", f"Calibrated chips: {spread}.", _table(rows, _value)]
    parts += [_list_behind(rows, chips)]
    parts += ["## Share of the loss that came back", _table(rows, lambda row, cell: row.style.share(cell.recovered))]
    parts += ["## Seconds of calibrating", _table(rows, _seconds)]
    if unmeasured:
        parts += ["## Not measured", "\n".join(f"* {line}" for line in unmeasured)]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Row], write: Callable[[Row, Cell], str]) -> str:
    methods = list(dict.fromkeys(method for row in rows for method in row.cells))
    lines = [["network", "setting", "digital", *methods], ["---", "---", *["---:"] * (len(methods) + 1)]]
    for row in rows:
        cells = [write(row, row.cells[method]) if method in row.cells else "" for method in methods]
        lines.append([row.network, row.setting, row.style.number(row.digital), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _value(row: Row, cell: Cell) -> str:
    number = row.style.estimate(cell.estimate) if cell.estimate.n > 1 else row.style.number(cell.estimate.mean)
    return number + "".join(row.behind(cell.record.method))


def _seconds(row: Row, cell: Cell) -> str:
    records = [record for record in row.result.records if record.method == cell.record.method]
    return f"{estimate([record.seconds_calibration for record in records]).mean:.1f}"


def _list_behind(rows: Sequence[Row], chips: int) -> str:
    if chips < 2:
        return "One chip does not tell a method that falls behind from chance; no cell is marked."
    marks = (
        f"{BELOW_NONE} below doing nothing, {BELOW_POPULATION} below `{POPULATION}`, beyond what chips vary by: the "
        "95% interval of the difference, paired by chip, lies below 0."
    )
    lines = list(_behind(rows))
    return "\n".join([marks, "", *lines]) if lines else f"{marks} No such cell."


def _behind(rows: Sequence[Row]) -> Iterator[str]:
    against = {BELOW_NONE: "doing nothing", BELOW_POPULATION: f"`{POPULATION}`"}
    for row in rows:
        for method in row.cells:
            for mark, difference in row.behind(method).items():
                shown = row.style.estimate(difference, signed=True)
                yield f"* {mark} {row.network}, {row.setting}: `{method}` against {against[mark]} {shown}"
