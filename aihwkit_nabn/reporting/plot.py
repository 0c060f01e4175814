"""The result as a plot: a metric against noise strength or time, one line per method."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_bytes
from aihwkit_nabn.reporting.style import line_styles
from aihwkit_nabn.results import Cell, Results
from aihwkit_nabn.times import format_time

_DPI = 150
_MOST_BANDS = 4  # more shaded bands than this blend into one grey
_MARK_GAP = 2.5  # points between the marks of neighbouring methods at one strength
_PANEL_POINTS = 260  # how wide a panel is, at least


Title = TypeVar("Title", str, str | None)


@dataclass(frozen=True, kw_only=True)
class Axis:
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


def plot_accuracy(
    result: Results, path: str | Path, metric: str | None = None, *, leave_out: Collection[str] = ()
) -> Path:
    """Draw mean and 95% interval over chips, one line per method and one panel per group, as a PNG file.

    The horizontal axis is the scenarios' strength; where none has one and their times differ, the time after
    programming; else the scenarios by name.

    Args:
        result: What `aihwkit_nabn.evaluate` returned.
        path: The PNG file; its folder is made if need be.
        metric: Which one; default: the first.
        leave_out: Labels of methods that are not drawn, e.g. the uncalibrated one, whose losses hide the others'
            differences.

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
    panels = cells_by_group(result, name, leave_out)
    return draw_panels(path, panels, dict.fromkeys(panels, result.digital[name]), name, result.n_chips)


def draw_panels(
    path: Path,
    panels: Mapping[Title, Sequence[Cell]],
    digital: Mapping[Title, float | Mapping[str, float]],
    metric: str,
    chips: int,
    axis: Axis | None = None,
) -> Path:
    """Draw one panel per title, with a legend for all, as a PNG file.

    Args:
        path: The file.
        panels: Each panel's cells by its title.
        digital: The digital model's value by title, and by scenario where it differs.
        metric: What the vertical axis shows.
        chips: Number of chips, for the legend.
        axis: The horizontal axis of all panels; default: what suits each.

    Raises:
        NabnError: the file cannot be written.
    """
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    # The object interface: pyplot would keep the figure, and a style the caller has set, for the whole process.
    crowd = 0 if axis else max(len({cell.record.scenario for cell in cells}) for cells in panels.values())
    width = max(4.2, 0.7 * crowd)
    figure = Figure(figsize=(2.2 + width * columns, 0.4 + 3.4 * rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel, (title, cells) in zip(axes, panels.items(), strict=False):
        draw_panel(panel, cells, digital[title], axis)
        panel.set_title(textwrap.fill(title or "", 52), fontsize=10)
    for index, panel in enumerate(axes):
        panel.set_visible(index < len(panels))
        panel.tick_params(labelleft=index % columns == 0)
        if index % columns == 0:
            panel.set_ylabel(metric)
    lines = [line.values() if isinstance(line, Mapping) else [line] for line in digital.values()]
    axes[0].set_ylim(*value_limits(panels, chain.from_iterable(lines)))
    handles = [Line2D([], [], color="black", linestyle=(0, (5, 3)), linewidth=1.2, label="digital")]
    for label, style in line_styles(cell.record for cells in panels.values() for cell in cells).items():
        handles.append(Line2D([], [], **style.options, linewidth=1.6, label=textwrap.fill(label, 24)))
    title = "1 chip" if chips == 1 else f"{chips} chips,\n95% interval"
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, title=title, title_fontsize=9)
    return write_png(figure, path)


def write_png(figure: Figure, path: Path) -> Path:
    """Write a figure, the same bytes every time.

    Raises:
        NabnError: the file cannot be written.
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
    return path


def cells_by_group(result: Results, metric: str, leave_out: Collection[str] = ()) -> dict[str | None, list[Cell]]:
    """Return what each panel of a plot shows: the cells of the scenarios of one group."""
    panels: dict[str | None, list[Cell]] = {}
    for cell in result.cells(metric):
        of_group = panels.setdefault(cell.record.group, [])  # also of what is left out, for the panels' order
        if cell.record.method not in leave_out:
            of_group.append(cell)
    return {group: cells for group, cells in panels.items() if cells}


def value_limits(panels: Mapping[Title, Sequence[Cell]], digital: Iterable[float]) -> tuple[float, float]:
    """Return limits of the vertical axis with which every panel shows all its intervals and the digital values."""
    ends = [end for cells in panels.values() for cell in cells for end in _ends(cell)]
    ends += [value for value in digital if not math.isnan(value)]
    return _padded(min(ends), max(ends))


def draw_panel(
    panel: Axes, cells: Sequence[Cell], digital: float | Mapping[str, float], axis: Axis | None = None
) -> None:
    """Draw a line per method with its intervals, and the digital value dashed across; see `draw_panels`."""
    axis = axis or _axis(cells)
    dashed: dict[str, Any] = {"color": "black", "linestyle": (0, (5, 3)), "linewidth": 1.2, "zorder": 1}
    if isinstance(digital, Mapping):
        panel.plot([axis.position[name] for name in digital], list(digital.values()), **dashed)
    else:
        panel.axhline(digital, **dashed)
    styles = line_styles(cell.record for cell in cells)
    if axis.log:
        panel.set_xscale("log")
    for index, (label, style) in enumerate(styles.items()):
        mine = sorted((c for c in cells if c.record.method == label), key=lambda c: axis.position[c.record.scenario])
        # Marks at one place stand side by side, or the last one drawn would hide the others.
        place = (index - (len(styles) - 1) / 2) / len(styles)
        shift = 0.0 if axis.joined else 0.7 * place
        points = _MARK_GAP * len(styles) * place if axis.joined else 0.0
        beside = panel.transData + ScaledTranslation(points / 72, 0, panel.figure.dpi_scale_trans)
        x = [axis.position[cell.record.scenario] + shift for cell in mine]
        means = [cell.estimate.mean for cell in mine]
        lows, highs = zip(*map(_ends, mine), strict=True)
        halves = [(high - low) / 2 for low, high in zip(lows, highs, strict=True)]
        joined = axis.joined and len(mine) > 1
        panel.errorbar(
            x,
            means,
            yerr=halves if any(halves) else None,
            **style.options | ({} if joined else {"linestyle": "none"}),
            markersize=5.5,
            markeredgewidth=1.0,
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2.5,
            zorder=3,
            transform=beside,
        )
        if joined and any(halves) and len(styles) <= _MOST_BANDS:
            panel.fill_between(x, lows, highs, color=style.color, alpha=0.12, linewidth=0, zorder=2)
    panel.set_xlabel(axis.label)
    if axis.ticks is not None:
        _set_ticks(panel, axis.ticks, named=not axis.joined)
    # The marks' small shift keeps matplotlib from finding the limits itself.
    first, last = min(axis.position.values()), max(axis.position.values())
    if not axis.joined:
        panel.set_xlim(first - 0.5, last + 0.5)
    else:
        # The outermost mark of many lies this share of the panel beside its place.
        share = (_MARK_GAP * len(styles) / 2 + 6) / _PANEL_POINTS
        room = max(0.06, share / (1 - 2 * share))
        if axis.log:
            panel.set_xlim(*(10**exponent for exponent in _padded(math.log10(first), math.log10(last), room)))
        else:
            panel.set_xlim(*_padded(first, last, room))
    tidy(panel, "y")


def tidy(panel: Axes, grid: Literal["x", "y"]) -> None:
    """Give a panel the look of all plots: a pale grid along one direction, no frame."""
    panel.grid(axis=grid, color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _set_ticks(panel: Axes, ticks: Mapping[float, str], *, named: bool) -> None:
    crowded = named and len(ticks) > 5
    texts = list(ticks.values())
    if crowded:
        texts = [textwrap.shorten(text, 36, placeholder=" ...") for text in texts]
    elif named:
        texts = [textwrap.fill(text, max(12, 48 // len(ticks))) for text in texts]
    panel.set_xticks(list(ticks), texts, rotation=35 if crowded else 0, fontsize=9)
    for tick in panel.get_xticklabels():
        tick.set_horizontalalignment("right" if crowded else "center")
        tick.set_rotation_mode("anchor" if crowded else "default")
    panel.xaxis.set_minor_locator(NullLocator())


def _ends(cell: Cell) -> tuple[float, float]:
    """Return the interval; for one chip, which has none, the value twice."""
    if math.isnan(cell.estimate.half_width):
        return cell.estimate.mean, cell.estimate.mean
    return cell.estimate.low, cell.estimate.high


def _padded(low: float, high: float, share: float = 0.06) -> tuple[float, float]:
    """Return limits with room at both ends, a share of what lies between them, also where they are the same."""
    room = share * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _axis(cells: Sequence[Cell]) -> Axis:
    records = {cell.record.scenario: cell.record for cell in cells}.values()
    strengths = [record.strength for record in records]
    times = [record.t_inference for record in records]
    one_group = len({record.group for record in records}) == 1
    if one_group and None not in strengths and len(set(strengths)) == len(strengths) > 1:
        positions = {record.scenario: float(record.strength or 0.0) for record in records}
        return Axis(position=positions, label="noise strength", ticks=_strength_ticks(sorted(positions.values())))
    if one_group and set(strengths) == {None} and len(set(times)) == len(times) > 1:
        # A logarithmic axis has no 0: right after programming stands a decade before the first later time.
        zero = min(time for time in times if time > 0) / 10
        at = {record.scenario: record.t_inference or zero for record in records}
        ticks = {record.t_inference or zero: format_time(record.t_inference) for record in records}
        return Axis(position=at, label="time after programming", ticks=ticks, log=True)
    names = {record.scenario: float(index) for index, record in enumerate(records)}
    return Axis(position=names, ticks={place: name for name, place in names.items()}, joined=False)


def _strength_ticks(strengths: Sequence[float]) -> dict[float, str] | None:
    """Return a tick at every strength that was measured, or None where they would overlap."""
    room = (strengths[-1] - strengths[0]) / 9
    if any(after - before < room for before, after in pairwise(strengths)):
        return None
    return {strength: f"{strength:g}" for strength in strengths}
