"""The result as a plot: a metric against noise strength or time, one line per method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from aihwkit_nabn.chip import format_time
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Cell, EvaluationResult
from aihwkit_nabn.evaluation.storage import write_bytes
from aihwkit_nabn.reporting.style import line_styles

_MOST_PANELS_PER_ROW = 3


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Where a panel's scenarios stand.

    Attributes:
        position: By scenario name.
        label: Text below the axis.
        ticks: Text by position where the numbers themselves are not shown.
        log: Whether the axis is logarithmic.
        joined: Whether a line between the scenarios means something.
    """

    position: dict[str, float]
    label: str = ""
    ticks: dict[float, str] | None = None
    log: bool = False
    joined: bool = True


def plot_accuracy(result: EvaluationResult, path: str | Path, metric: str | None = None) -> Path:
    """Draw mean and 95% interval over chips, one line per method and one panel per group, as a PNG file.

    The horizontal axis is the scenarios' strength; where none has one and their times differ, the time after
    programming; else the scenarios by name.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        path: The PNG file; its folder is made if need be.
        metric: Which one; default: the first.

    Returns:
        The path.

    Raises:
        UnknownNameError: there is no such metric.
        NabnError: the path does not end in ``.png``, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise NabnError(f"path must end in .png, got {str(path)!r}")
    name = result.metric_name(metric)
    panels: dict[str | None, list[Cell]] = {}
    for cell in result.cells(name):
        panels.setdefault(cell.record.group, []).append(cell)
    columns = min(len(panels), _MOST_PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    # The object interface: pyplot would keep the figure, and a style the caller has set, for the whole process.
    figure = Figure(figsize=(2.2 + 4.0 * columns, 0.4 + 3.2 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, (group, cells) in zip(axes, panels.items(), strict=False):
        _draw_panel(panel, cells, result.digital[name])
        panel.set_title(group or "", fontsize=10)
    for index, panel in enumerate(axes):
        panel.set_visible(index < len(panels))
        panel.tick_params(labelleft=index % columns == 0)
        if index % columns == 0:
            panel.set_ylabel(name)
    _add_legend(figure, axes[: len(panels)], result)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def _draw_panel(panel: Axes, cells: Sequence[Cell], digital: float) -> None:
    axis = _axis(cells)
    panel.axhline(digital, color="black", linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
    styles = line_styles(cell.record for cell in cells)
    if axis.log:
        panel.set_xscale("log")
    for index, (label, style) in enumerate(styles.items()):
        mine = sorted((c for c in cells if c.record.method == label), key=lambda c: axis.position[c.record.scenario])
        # Without an order among the scenarios, marks stand side by side instead of one above the other.
        shift = 0.0 if axis.joined else 0.6 * ((index + 0.5) / len(styles) - 0.5)
        x = [axis.position[cell.record.scenario] + shift for cell in mine]
        means = [cell.estimate.mean for cell in mine]
        # One chip has no interval: its bar is left out, not drawn at NaN.
        halves = [0.0 if math.isnan(cell.estimate.half_width) else cell.estimate.half_width for cell in mine]
        joined = axis.joined and len(mine) > 1
        panel.errorbar(
            x,
            means,
            yerr=halves if any(halves) else None,
            color=style.color,
            marker=style.marker,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle=style.linestyle if joined else "none",
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2.5,
            zorder=3,
        )
        if joined and any(halves):
            low = [mean - half for mean, half in zip(means, halves, strict=True)]
            high = [mean + half for mean, half in zip(means, halves, strict=True)]
            panel.fill_between(x, low, high, color=style.color, alpha=0.12, linewidth=0, zorder=2)
    panel.set_xlabel(axis.label)
    if axis.ticks is not None:
        crowded = not axis.joined and sum(map(len, axis.ticks.values())) > 40
        panel.set_xticks(list(axis.ticks), list(axis.ticks.values()), rotation=30 if crowded else 0)
        for tick in panel.get_xticklabels():
            tick.set_horizontalalignment("right" if crowded else "center")
        panel.xaxis.set_minor_locator(NullLocator())
    if not axis.joined:
        panel.set_xlim(-0.5, len(axis.position) - 0.5)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _axis(cells: Sequence[Cell]) -> _Axis:
    records = {cell.record.scenario: cell.record for cell in cells}.values()
    strengths = [record.strength for record in records]
    times = [record.t_inference for record in records]
    distinct = len(set(strengths)) == len(strengths)
    if distinct and None not in strengths:
        positions = {record.scenario: float(record.strength or 0.0) for record in records}
        return _Axis(position=positions, label="noise strength")
    if set(strengths) == {None} and len(set(times)) == len(times) > 1:
        # A logarithmic axis has no 0: right after programming stands a decade before the first later time.
        zero = min(time for time in times if time > 0) / 10
        at = {record.scenario: record.t_inference or zero for record in records}
        ticks = {record.t_inference or zero: format_time(record.t_inference) for record in records}
        return _Axis(position=at, label="time after programming", ticks=ticks, log=True)
    names = [record.scenario for record in records]
    return _Axis(
        position={name: float(index) for index, name in enumerate(names)},
        ticks={float(index): name for index, name in enumerate(names)},
        joined=False,
    )


def _add_legend(figure: Figure, panels: Sequence[Axes], result: EvaluationResult) -> None:
    handles = [Line2D([], [], color="black", linestyle=(0, (5, 3)), linewidth=1.2, label="digital")]
    for label, style in line_styles(result.records).items():
        handles.append(
            Line2D(
                [], [], color=style.color, marker=style.marker, linestyle=style.linestyle, linewidth=1.6, label=label
            )
        )
    chips = result.n_chips
    title = "1 chip" if chips == 1 else f"{chips} chips,\n95% interval"
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, title=title, title_fontsize=9)
