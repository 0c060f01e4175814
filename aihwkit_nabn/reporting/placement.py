"""Which layers to keep digital: tables, and loss against what lies on tiles."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aihwkit_nabn.files import write_bytes
from aihwkit_nabn.reporting.text import NumberStyle
from aihwkit_nabn.results.placing import ALL_ON_TILES, CORRECTED, FIRST_LAST, FOUND, PlacementResult, Point

_ROWS = ("", "layers", "share", "ranks", "in all", "loss")
_LAYERS = ("layer", "disagreement alone", "share", "is")
_LINES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255"]
_MARKS = {
    ALL_ON_TILES: ("s", "#555555"),
    FIRST_LAST: ("D", "#AA3377"),
    CORRECTED: ("D", "#AA3377"),
    FOUND: ("*", "#000000"),
}


def rows(result: PlacementResult) -> list[list[str]]:
    """Return the verification as text, a list per row."""
    return [
        [row.label, f"{row.kept} of {len(result.steps)}", *map(_percent, _shares(row)), _loss(result, row)]
        for row in result.rows
    ]


def _loss(result: PlacementResult, row: Point) -> str:
    return NumberStyle(decimals=2 if abs(result.digital) > 1.5 else 4).estimate(row.loss)


def _shares(row: Point) -> tuple[float, float, float]:
    return row.layers, row.corrections, row.share


def _percent(share: float) -> str:
    return f"{share:.2%}"


def layer_rows(result: PlacementResult) -> list[list[str]]:
    """Return the layers as text, in the order in which they become digital."""
    kept = set(result.digital_layers)
    return [
        [step.name, f"{step.disagreement:.3g}", _percent(step.share), "digital" if step.name in kept else "on tiles"]
        for step in result.steps
    ]


def caption(result: PlacementResult) -> str:
    """Return what the numbers are."""
    n = result.placement.loss.n
    over = "on 1 chip" if n == 1 else f"mean ± half of the 95% interval over {n} chips"
    return (
        f"{result.scenario}, {result.method}. Loss of {result.metric} (digital: {result.digital:.4g}), {over} that the "
        "search has not seen, on the test images. Shares are of the multiplications of all layers that could lie on "
        "tiles; ranks: the corrections' share."
    )


def verdict(result: PlacementResult) -> str:
    """Return whether the bound holds on the chips of the verification, in words."""
    found, loss = result.placement, result.placement.loss
    what = (
        f"a loss of {_loss(result, found)} ({result.metric}) on {'1 chip' if loss.n == 1 else f'{loss.n} chips'} that "
        f"the search has not seen, with {_percent(found.share)} of the multiplications digital"
    )
    if not result.met:
        return (
            f"No placement with a layer on tiles was within {result.bound:g} on the search chips; the best one "
            f"measured has {what}."
        )
    if loss.mean > result.bound:
        return f"The bound of {result.bound:g} does NOT hold: {what}."
    unsure = loss.n > 1 and loss.high > result.bound
    tail = "; the interval reaches beyond it, so more chips would tell" if unsure else ""
    return f"The bound of {result.bound:g} holds: {what}{tail}."


def print_placement(result: PlacementResult, console: Console) -> None:
    """Print the layers that stay digital, the verification, and whether the bound holds."""
    kept = [row for row in layer_rows(result) if row[0] in result.digital_layers]
    if kept:
        console.print(_table("chosen to stay digital, in this order", _LAYERS[:3], [row[:3] for row in kept]))
    else:
        console.print(Text("no layer was chosen to stay digital", style="bold"))
    console.print(_table("on chips not seen", _ROWS, rows(result), fixed=True))
    console.print(Text(caption(result), style="dim"))
    for note in result.notes:
        console.print(Text(note))
    console.print(Text(verdict(result), style="bold"), soft_wrap=True)


def _table(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]], *, fixed: bool = False) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(
            Text(header), justify="right" if number else "left", overflow="fold", no_wrap=fixed and number > 0
        )
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def placement_markdown(result: PlacementResult) -> str:
    """Return verdict and tables as GitHub markdown."""
    lines = [verdict(result), "", *_markdown(_ROWS, rows(result)), caption(result), ""]
    lines += [f"{note}\n" for note in result.notes]
    lines += ["Layers, in the order in which they become digital:", "", *_markdown(_LAYERS, layer_rows(result))]
    lines += ["Searched, on other chips and other images:", ""]
    found = [
        [point.label, f"{point.kept}", _percent(point.share), f"{point.loss.mean:.4g}"] for point in result.searched
    ]
    return "\n".join(lines + _markdown(("method", "layers digital", "in all", "loss"), found)).rstrip() + "\n"


def _markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    texts = [headers, ["---", *["---:"] * (len(headers) - 1)], *lines]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in texts] + [""]


def plot_placement(result: PlacementResult, path: Path) -> Path:
    """Draw loss against the share of multiplications on tiles, as a PNG file: dots searched, marks verified.

    Raises:
        NabnError: the file cannot be written.
    """
    figure = Figure(figsize=(7.0, 5.0), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panel = figure.subplots()
    for number, label in enumerate(dict.fromkeys(point.label for point in result.searched)):
        points = sorted((p for p in result.searched if p.label == label), key=lambda point: point.share)
        shares, means = [1 - p.share for p in points], [p.loss.mean for p in points]
        color = _LINES[number % len(_LINES)]
        panel.plot(shares, means, "o", color=color, markersize=4, label=f"searched: {label}")
    for row in result.rows:
        marker, color = _MARKS[row.label]
        width = row.loss.half_width
        panel.errorbar(
            [1 - row.share],
            [row.loss.mean],
            yerr=None if math.isnan(width) else [width],
            fmt=marker,
            color=color,
            markersize={FOUND: 12, CORRECTED: 10}.get(row.label, 7),
            markerfacecolor="none" if row.label == CORRECTED else color,
            capsize=3,
            label=f"verified: {row.label}",
            zorder=3,
        )
    panel.axhline(result.bound, color="black", linewidth=0.9, linestyle="--", label=f"allowed: {result.bound:g}")
    panel.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    panel.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    panel.invert_xaxis()
    panel.set_xlabel("multiplications on tiles")
    panel.set_ylabel(f"loss of {result.metric}", parse_math=False)
    panel.set_title(result.scenario, fontsize=10, parse_math=False)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path
