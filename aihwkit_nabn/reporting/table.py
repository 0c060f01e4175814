"""The result as a table, in the terminal and as GitHub markdown."""

from __future__ import annotations

import textwrap

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from aihwkit_nabn.reporting.tables import Entry, Table, by_method, by_scenario, with_differences
from aihwkit_nabn.reporting.text import caption, footnotes, missing_note, number_style
from aihwkit_nabn.results import Results

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
    table = _wide(result, by_scenario(result, name, style))
    turned = Measurement.get(console, console.options.update(width=_UNLIMITED), table).maximum > console.width
    if turned:
        table = _blocks(result, with_differences(result, name, style), console.width)
    console.print(table)
    console.print(Text(caption(result, style, turned=turned), style="dim"))
    for note in footnotes(result, style, cells):
        mark, rest = (style.mark, note[len(style.mark) :]) if note.startswith(style.mark) else ("", note)
        console.print(Text.assemble((mark, "red"), rest, style="dim"))


def print_metrics(result: Results, console: Console) -> None:
    """Print the means of all metrics that people quote; nothing where there is one."""
    names = result.main_metrics
    if len(names) > 1:
        columns = [result.cells(name) for name in names]
        rows = [("", [Entry(text="digital"), *(Entry(text=f"{result.digital[name]:.3g}") for name in names)])]
        for row in zip(*columns, strict=True):
            record = row[0].record
            first = record.method == result.methods[0]
            means = [Entry(text=f"{cell.estimate.mean:.3g}") for cell in row]
            rows.append((record.scenario if first else "", [Entry(text=record.method), *means]))
        many = f", mean over {result.n_chips} chips" if result.n_chips > 1 else ""
        heads = [name.rpartition("/")[2].replace("_", "\n") for name in names]
        Table(caption=f"every metric{many}", header=["scenario", "method", *heads], rows=rows, words=2).print(console)
    if result.missing:
        console.print(Text(missing_note(result), style="dim"))


def markdown_table(result: Results, metric: str | None = None) -> str:
    """Return the table of `print_table` as GitHub markdown, the caption and the footnotes below it.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    turned = 2 + len(result.methods) > _MOST_COLUMNS
    table = with_differences(result, name) if turned else by_scenario(result, name)
    return _with_notes(result, name, table, turned=turned)


def markdown_overview(result: Results, metric: str | None = None) -> str:
    """Return one row per method and one column per scenario as GitHub markdown: many methods at a glance.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    return _with_notes(result, name, by_method(result, name), turned=False)


def markdown_differences(result: Results, metric: str | None = None) -> str:
    """Return one row per scenario and method as GitHub markdown, with differences to the uncalibrated chips.

    Raises:
        UnknownNameError: there is no such metric.
    """
    name = result.metric_name(metric)
    return _with_notes(result, name, with_differences(result, name), turned=True)


def _with_notes(result: Results, metric: str, table: Table, *, turned: bool) -> str:
    """Return a markdown table with the caption and the footnotes below."""
    cells = result.cells(metric)
    style = number_style(cells, result.digital[metric])
    return (
        "\n\n".join([table.markdown(), caption(result, style, turned=turned), *footnotes(result, style, cells)]) + "\n"
    )


def _wide(result: Results, plain: Table) -> RichTable:
    table = _empty(plain.caption)
    table.add_column("scenario", min_width=_scenario_width(result), overflow="fold")
    for title in plain.header[1:]:
        table.add_column(Text(textwrap.fill(title, _HEADER_WIDTH)), justify="right", vertical="bottom", no_wrap=True)
    groups = {record.scenario: record.group for record in result.records}
    last = None
    for scenario, entries in plain.rows:
        if last is not None and groups[scenario] != last:
            table.add_section()
        last = groups[scenario]
        table.add_row(Text(scenario), *(entry.rich() for entry in entries))
    return table


def _blocks(result: Results, plain: Table, width: int) -> RichTable:
    table = _empty(plain.caption)
    values = max(len(entries[1].text) for _, entries in plain.rows)
    more = {"difference": values + 3, "recovered": len("recovered") + 2}
    taken = len("compensation") + values + 6  # the longest word of a method, and the gaps
    while more and len("scenario") + taken + sum(more.values()) > width:
        more.popitem()  # half a number would mislead
    room = max(len("scenario"), min(_scenario_width(result), width - taken - sum(more.values())))
    # A width, not a least one: rich would take the room that is missing from this column, and give it back.
    table.add_column("scenario", width=room, overflow="fold")
    table.add_column("method", min_width=8, overflow="fold")
    table.add_column(Text(plain.header[2]), justify="right", min_width=values, overflow="fold")
    for title in more:
        table.add_column(title, justify="right", no_wrap=True)
    for scenario, (method, *numbers) in plain.rows:
        if scenario and table.rows:
            table.add_section()
        table.add_row(Text(scenario), Text(method.text), *(entry.rich() for entry in numbers[: 1 + len(more)]))
    return table


def _scenario_width(result: Results) -> int:
    """Room for the names of scenarios, which differ at their ends, as far as a terminal of 80 columns has it."""
    return min(max(len("scenario"), *map(len, result.scenarios)), 22)


def _empty(title: str) -> RichTable:
    return RichTable(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
