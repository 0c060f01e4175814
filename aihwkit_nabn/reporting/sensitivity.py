"""Which layers hurt most, as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from aihwkit_nabn.reporting.plot import tidy, write_png
from aihwkit_nabn.reporting.tables import Entry, Table
from aihwkit_nabn.reporting.text import NumberStyle
from aihwkit_nabn.results import Results
from aihwkit_nabn.results.layers import BUT, ONLY, WHOLE, rankings

_TITLES = {ONLY: "only this layer on the chip", BUT: "every layer on the chip but this one"}


def loss_style(result: Results) -> NumberStyle:
    """Return how losses are written: in the metric's own unit, a digit more than the metric itself."""
    return NumberStyle(decimals=2 if abs(result.digital[result.metric_name()]) > 1.5 else 4)


def caption(result: Results) -> str:
    """Return what the numbers are."""
    chips = "1 chip" if result.n_chips == 1 else f"{result.n_chips} chips ± half of the 95% interval"
    metric = f"{result.metric_name()} (digital: {result.digital[result.metric_name()]:.4g})"
    return f"Loss of {metric}, mean over {chips}. Share: of the matrix weights."


def sensitivity_tables(result: Results) -> Iterator[Table]:
    """Yield a table per scenario, the layer that hurts most first, with bars relative to it."""
    style = loss_style(result)
    for scenario, on_chip, ranks in rankings(result):
        largest = max((rank.losses[m].mean for rank in ranks for m in result.methods if rank.layer != WHOLE), default=0)
        rows = []
        for rank in ranks:
            entries = [Entry(text="" if math.isnan(rank.share) else f"{rank.share:.1%}")]
            for loss in (rank.losses[method] for method in result.methods):
                bar = max(0.0, min(1.0, loss.mean / largest)) if largest > 0 and rank.layer != WHOLE else None
                entries.append(Entry(text=style.estimate(loss), share=bar))
            rows.append((rank.layer, entries))
        header = ["layer", "share", *result.methods]
        yield Table(caption=f"{scenario}: {_TITLES[on_chip]}", header=header, rows=rows)


def print_sensitivity(result: Results, console: Console) -> None:
    """Print a table per scenario, the layer that hurts most first."""
    for table in sensitivity_tables(result):
        table.print(console)
    console.print(Text(caption(result), style="dim"))


def sensitivity_markdown(result: Results) -> str:
    """Return the tables as GitHub markdown."""
    parts = [f"## {table.caption}\n\n{table.markdown()}" for table in sensitivity_tables(result)]
    return "\n\n".join([*parts, caption(result)]) + "\n"


def plot_sensitivity(result: Results, path: Path, most: int = 20) -> Path:
    """Draw the losses of the layers that hurt most, one panel per scenario, as a PNG file.

    Raises:
        NabnError: the file cannot be written.
    """
    listed = [(s, [r for r in ranks if r.layer != WHOLE][:most]) for s, kind, ranks in rankings(result) if kind == ONLY]
    tallest = max(len(ranks) for _, ranks in listed)
    figure = Figure(figsize=(7.0, 0.9 * len(listed) + 0.24 * tallest * len(listed)), dpi=150, layout="constrained")
    axes = figure.subplots(len(listed), 1, squeeze=False).flatten()
    for panel, (scenario, ranks) in zip(axes, listed, strict=True):
        for index, method in enumerate(result.methods):
            values = [rank.losses[method] for rank in ranks]
            panel.errorbar(
                [value.mean for value in values],
                [place + 0.2 * (index - (len(result.methods) - 1) / 2) for place in range(len(ranks))],
                xerr=[0.0 if math.isnan(value.half_width) else value.half_width for value in values],
                fmt="os^vDPX<"[index % 8],
                markersize=4,
                capsize=2,
                label=method,
                color="#777777" if index == 0 else ["#D55E00", "#0072B2", "#009E73", "#CC79A7"][(index - 1) % 4],
            )
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(ranks)), [rank.layer for rank in ranks], fontsize=8, parse_math=False)
        panel.invert_yaxis()
        panel.set_title(scenario, fontsize=10, parse_math=False)
        panel.set_xlabel(f"loss of {result.metric_name()}", parse_math=False)
        tidy(panel, "x")
    axes[0].legend(frameon=False, fontsize=8)
    return write_png(figure, path)
