"""Which layers hurt most, as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aihwkit_nabn.reporting.plot import tidy, write_png
from aihwkit_nabn.reporting.text import NumberStyle
from aihwkit_nabn.results import Estimate, Results
from aihwkit_nabn.results.layers import BUT, ONLY, WHOLE, LayerRank, rankings

TITLES = {ONLY: "only this layer on the chip", BUT: "every layer on the chip but this one"}


def _digital(result: Results) -> float:
    return result.digital[result.metric_name()]


def loss_style(result: Results) -> NumberStyle:
    """Return how losses are written: in the metric's own unit, a digit more than the metric itself."""
    return NumberStyle(decimals=2 if abs(_digital(result)) > 1.5 else 4)


def loss_text(value: Estimate, style: NumberStyle) -> str:
    """Return a loss with its interval, or alone where one chip has none."""
    return style.number(value.mean) if math.isnan(value.half_width) else style.estimate(value)


def _share(rank: LayerRank) -> str:
    return "" if math.isnan(rank.share) else f"{rank.share:.1%}"


def caption(result: Results) -> str:
    """Return what the numbers are."""
    chips = "1 chip" if result.n_chips == 1 else f"{result.n_chips} chips ± half of the 95% interval"
    metric = f"{result.metric_name()} (digital: {_digital(result):.4g})"
    return f"Loss of {metric}, mean over {chips}. Share: of the matrix weights."


def print_sensitivity(result: Results, console: Console) -> None:
    """Print a table per scenario, the layer that hurts most first."""
    style = loss_style(result)
    for scenario, on_chip, ranks in rankings(result):
        table = Table(
            title=Text(f"{scenario}: {TITLES[on_chip]}", style="bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        table.add_column("layer", overflow="fold")
        table.add_column("share", justify="right", no_wrap=True)
        for method in result.methods:
            table.add_column(Text(method), justify="right", no_wrap=True)
        for rank in ranks:
            table.add_row(Text(rank.layer), _share(rank), *(loss_text(rank.losses[m], style) for m in result.methods))
        console.print(table)
    console.print(Text(caption(result), style="dim"))


def sensitivity_markdown(result: Results) -> str:
    """Return the tables as GitHub markdown."""
    style = loss_style(result)
    lines: list[str] = []
    for scenario, on_chip, ranks in rankings(result):
        lines += [f"## {scenario}: {TITLES[on_chip]}", ""]
        lines += [_row(["layer", "share", *result.methods]), _row(["---", *["---:"] * (1 + len(result.methods))])]
        lines += [
            _row([rank.layer, _share(rank), *(loss_text(rank.losses[m], style) for m in result.methods)])
            for rank in ranks
        ]
        lines.append("")
    return "\n".join([*lines, caption(result)]) + "\n"


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


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
