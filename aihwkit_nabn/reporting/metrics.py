"""A table of every metric, where there are several."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from aihwkit_nabn.results import Results
from aihwkit_nabn.results.metrics import main_metrics


def print_metrics(result: Results, console: Console) -> None:
    """Print the means of all metrics that people quote; nothing where there is one."""
    if len(main_metrics(result.metrics)) == 1:
        return
    many = f", mean over {result.n_chips} chips" if result.n_chips > 1 else ""
    table = Table(title=f"every metric{many}", box=box.SIMPLE)
    # COCO reports -1 where the set has no object of a size.
    shown = [name for name in main_metrics(result.metrics) if result.digital[name] != -1] or result.metrics
    table.add_column("scenario")
    table.add_column("method", no_wrap=True)
    for name in shown:
        table.add_column(name.rpartition("/")[2].replace("_", "\n"), justify="right", no_wrap=True)
    table.add_row("", "digital", *(f"{result.digital[name]:.3g}" for name in shown))
    columns = [result.cells(name) for name in shown]
    last = None
    for row in zip(*columns, strict=True):
        record = row[0].record
        title, last = record.scenario if record.scenario != last else "", record.scenario
        table.add_row(title, record.method, *(f"{cell.estimate.mean:.3g}" for cell in row))
    console.print(table)
