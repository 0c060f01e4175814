"""The result as a table, in the terminal and as GitHub markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from aihwkit_nabn.reporting.text import NumberStyle, best_methods, caption, footnotes, number_style
from aihwkit_nabn.results import Cell, Results

_T = TypeVar("_T")

_UNLIMITED = 10_000  # columns of a console on which nothing is cut
_HEADER_WIDTH = 14  # longer method labels are written on several lines

_MOST_COLUMNS = 8
"""A markdown table with more columns than this is turned: nobody knows how wide its reader is."""


def print_table(result: Results, console: Console | None = None, metric: str | None = None) -> None:
    """Print scenarios against methods, the mean and its 95% interval over chips.

    The best calibration method of a scenario is bold; one that is worse than doing nothing is red, with a footnote.
    Where the console is too narrow for one column per method, each scenario becomes a block with one row per method.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        console: Where to print; default: the standard output.
        metric: Which one; default: the first.

    Raises:
        UnknownNameError: there is no such metric.
    """
    console = console or Console()
    name = result.metric_name(metric)
    cells = result.cells(name)
    style = number_style(cells, result.digital[name], ascii_only=console.options.ascii_only)
    table = _wide_table(result, name, cells, style)
    turned = Measurement.get(console, console.options.update(width=_UNLIMITED), table).maximum > console.width
    if turned:
        table = _block_table(result, name, cells, style, console.width)
    console.print(table)
    console.print(Text(caption(result, style, turned=turned), style="dim"))
    for note in footnotes(result, style, cells):
        mark, rest = (style.mark, note[len(style.mark) :]) if note.startswith(style.mark) else ("", note)
        console.print(Text.assemble((mark, "red"), rest, style="dim"))


def markdown_table(result: Results, metric: str | None = None) -> str:
    """Return the table of `print_table` as GitHub markdown, the caption and the footnote below it.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        metric: Which one; default: the first.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    cells = result.cells(name)
    style = number_style(cells, result.digital[name])
    best = best_methods(cells)
    turned = 2 + len(result.methods) > _MOST_COLUMNS
    if not turned:
        header = [name, "digital", *result.methods]
        rows = [
            [
                scenario,
                style.number(result.digital[name]),
                *_in_columns(result, row, lambda c: _markdown(c, style, best)),
            ]
            for scenario, row in _by_scenario(cells).items()
        ]
    else:
        header = ["scenario", "method", name, "difference", "recovered"]
        rows = [
            [scenario if index == 0 else "", method, _markdown(cell, style, best) if cell else value, *rest]
            for scenario, row in _by_scenario(cells).items()
            for index, (cell, method, value, *rest) in enumerate(_block_rows(result, name, row, style))
        ]
    lines = [_markdown_row(header), _markdown_row(["---", "---" if turned else "---:", *["---:"] * (len(header) - 2)])]
    lines += [_markdown_row(row) for row in rows]
    return _with_notes(lines, result, cells, style, turned=turned)


def markdown_overview(result: Results, metric: str | None = None) -> str:
    """Return one row per method and one column per scenario as GitHub markdown: many methods at a glance.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        metric: Which one; default: the first.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    cells = result.cells(name)
    style = number_style(cells, result.digital[name])
    best = best_methods(cells)
    scenarios = list(_by_scenario(cells))
    by_place = {(cell.record.method, cell.record.scenario): cell for cell in cells}
    lines = [_markdown_row([name, *scenarios]), _markdown_row(["---", *["---:"] * len(scenarios)])]
    lines.append(_markdown_row(["digital", *[style.number(result.digital[name])] * len(scenarios)]))
    for method in result.methods:
        row = [by_place.get((method, scenario)) for scenario in scenarios]
        lines.append(_markdown_row([method, *("" if cell is None else _markdown(cell, style, best) for cell in row)]))
    return _with_notes(lines, result, cells, style, turned=False)


def _with_notes(lines: list[str], result: Results, cells: Sequence[Cell], style: NumberStyle, *, turned: bool) -> str:
    """Return a markdown table's lines as text, with the caption and the footnotes below."""
    notes = ["", caption(result, style, turned=turned)]
    for note in footnotes(result, style, cells):
        notes += ["", note]
    return "\n".join([*lines, *notes]) + "\n"


def _wide_table(result: Results, metric: str, cells: Sequence[Cell], style: NumberStyle) -> Table:
    table = _table(metric)
    table.add_column("scenario", min_width=_scenario_width(cells), overflow="fold")
    for title in ("digital", *result.methods):
        table.add_column(Text(textwrap.fill(title, _HEADER_WIDTH)), justify="right", vertical="bottom", no_wrap=True)
    best = best_methods(cells)
    group = None
    for scenario, row in _by_scenario(cells).items():
        if group is not None and row[0].record.group != group:
            table.add_section()
        group = row[0].record.group
        values = _in_columns(result, row, lambda cell: _rich(cell, style, best))
        table.add_row(Text(scenario), style.number(result.digital[metric]), *values)
    return table


def _block_table(result: Results, metric: str, cells: Sequence[Cell], style: NumberStyle, width: int) -> Table:
    table = _table(metric)
    values = max(len(style.estimate(cell.estimate)) + int(cell.hurts) for cell in cells)
    more = {"difference": values + 3, "recovered": len("recovered") + 2}
    taken = len("compensation") + values + 6  # the longest word of a method, and the gaps
    while more and len("scenario") + taken + sum(more.values()) > width:
        more.popitem()  # half a number would mislead
    room = max(len("scenario"), min(_scenario_width(cells), width - taken - sum(more.values())))
    # A width, not a least one: rich would take the room that is missing from this column, and give it back.
    table.add_column("scenario", width=room, overflow="fold")
    table.add_column("method", min_width=8, overflow="fold")
    table.add_column(Text(metric), justify="right", min_width=values, overflow="fold")
    for title in more:
        table.add_column(title, justify="right", no_wrap=True)
    best = best_methods(cells)
    for scenario, row in _by_scenario(cells).items():
        for index, (cell, method, value, *rest) in enumerate(_block_rows(result, metric, row, style)):
            shown = _rich(cell, style, best) if cell else Text(value, no_wrap=True)
            table.add_row(Text(scenario) if index == 0 else "", Text(method), shown, *rest[: len(more)])
        table.add_section()
    return table


def _block_rows(
    result: Results, metric: str, row: Sequence[Cell], style: NumberStyle
) -> list[tuple[Cell | None, str, str, str, str]]:
    """Return one scenario's rows: cell, method, value, difference to uncalibrated, share recovered."""
    rows: list[tuple[Cell | None, str, str, str, str]] = [
        (None, "digital", style.number(result.digital[metric]), "", "")
    ]
    for cell in row:
        difference = "" if cell.difference is None else style.estimate(cell.difference, signed=True)
        recovered = style.share(cell.recovered) if cell.calibrated else ""
        rows.append((cell, cell.record.method, style.estimate(cell.estimate), difference, recovered))
    return rows


def _scenario_width(cells: Sequence[Cell]) -> int:
    """Room for the names of scenarios, which differ at their ends, as far as a terminal of 80 columns has it."""
    return min(max([len("scenario"), *(len(cell.record.scenario) for cell in cells)]), 22)


def _table(metric: str) -> Table:
    return Table(
        title=Text(f"{metric} (higher is better)", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _by_scenario(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.record.scenario, []).append(cell)
    return rows


def _in_columns(result: Results, row: Sequence[Cell], write: Callable[[Cell], _T]) -> list[_T | str]:
    """Return one entry per method of the result; an empty one where this scenario was not measured with it."""
    cells = {cell.record.method: cell for cell in row}
    return [write(cells[method]) if method in cells else "" for method in result.methods]


def _rich(cell: Cell, style: NumberStyle, best: dict[str, set[str]]) -> Text:
    text = Text(style.estimate(cell.estimate), no_wrap=True)
    if cell.hurts:
        text.append(style.mark)
        text.stylize("red")
    if cell.record.method in best.get(cell.record.scenario, ()):
        text.stylize("bold")
    return text


def _markdown(cell: Cell, style: NumberStyle, best: dict[str, set[str]]) -> str:
    text = style.estimate(cell.estimate)
    if cell.record.method in best.get(cell.record.scenario, ()):
        text = f"**{text}**"
    return text + style.mark if cell.hurts else text


def _markdown_row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in texts) + " |"
