"""One plot per axis that a sweep goes over: calibration images, their origin, JPEG quality, place in a stream."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation

from aihwkit_nabn.files import write_bytes
from aihwkit_nabn.reporting.style import LineStyle, line_styles
from aihwkit_nabn.results import DIGITAL, Record, estimate
from aihwkit_nabn.studies.grid.results import labels_of
from aihwkit_nabn.studies.grid.spec import SweepSpec
from aihwkit_nabn.studies.grid.stream import times_of
from aihwkit_nabn.times import format_time

_MOST_PANELS = 9
_DPI = 110
_MARK_GAP = 2.5  # points between the marks of two methods at one place, or the last would hide the others


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """What stands on the horizontal axis.

    Attributes:
        field: Of `Record`.
        values: In their order from left to right.
        label: Text below the axis.
        text: A value's text.
        at: A value's place.
        log: Whether the axis is logarithmic.
    """

    field: str
    values: Sequence[Any]
    label: str
    text: Callable[[Any], str] = str
    at: Callable[[int, Any], float] = lambda index, value: float(index)
    log: bool = False


def write_axis_plots(spec: SweepSpec, model: str, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw one PNG per swept axis into a folder: mean and 95% interval over chips, a line per method.

    Args:
        spec: The sweep.
        model: Name of the model's entry.
        records: All records.
        folder: Where to; made if need be.

    Returns:
        The files, ``AXIS.png``; with more than nine panels, ``AXIS_2.png`` and so on.

    Raises:
        NabnError: a file cannot be written.
    """
    mine = [record for record in records if record.axes["model"] == model]
    written = []
    for axis in _axes(spec):
        panels = _panels(axis, mine)
        for number, begin in enumerate(range(0, len(panels), _MOST_PANELS), start=1):
            path = folder / f"{axis.field}{'' if number == 1 else f'_{number}'}.png"
            _draw(path, axis, dict(list(panels.items())[begin : begin + _MOST_PANELS]), mine, labels_of(spec))
            written.append(path)
    return written


def _axes(spec: SweepSpec) -> list[_Axis]:
    axes = []
    if len(spec.samples) > 1:
        axes.append(
            _Axis(
                field="samples",
                values=sorted(spec.samples),
                label="calibration images",
                at=lambda index, value: float(value),
                log=True,
            )
        )
    if len(spec.jpeg) > 1:
        order = sorted(spec.jpeg, key=lambda quality: math.inf if quality is None else quality)
        axes.append(
            _Axis(field="jpeg", values=order, label="JPEG quality", text=lambda q: "none" if q is None else str(q))
        )
    if len(spec.calibration) > 1:
        axes.append(
            _Axis(
                field="calibration",
                values=spec.calibration,
                label="calibration images",
                text=lambda value: str(value).replace("_", " "),
            )
        )
    if spec.stream is not None:
        times = times_of(spec.stream, spec.time[0])
        ends = [spec.stream.window * (window + 1) for window in range(spec.stream.n_windows)]
        hours = {end: f"{end}\n{_round_time(seconds)}" for end, seconds in zip(ends, times, strict=True)}
        drifts = spec.stream.drift is not None
        axes.append(
            _Axis(
                field="position",
                values=ends,
                label="images of the stream" + (" and time after programming" if drifts else ""),
                text=lambda end: hours[end] if drifts else str(end),
            )
        )
    return axes


def _round_time(seconds: float) -> str:
    for unit, length in (("y", 31_557_600.0), ("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 0.95 * length:
            return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f}{unit}".replace(".0", "")
    return f"{seconds:.2g}s"


def _panels(axis: _Axis, records: Sequence[Record]) -> dict[tuple[Any, ...], str]:
    """Return the panels, by what all their points have in common, with their titles."""
    rest = [name for name in ("scenario", "t_inference", "jpeg", "samples", "calibration") if name != axis.field]
    chips = [record for record in records if record.method_name != DIGITAL]
    # Methods without calibration images belong to every panel.
    full = [r for r in chips if r.axes["samples"] is not None] or chips
    keys = list(dict.fromkeys(tuple(record.axis(name) for name in rest) for record in full))
    keys.sort(key=lambda key: [(isinstance(part, str), part is None, 0 if part is None else part) for part in key])
    titles = {}
    for key in keys:
        parts = dict(zip(rest, key, strict=True))
        told = [str(parts["scenario"])]
        for name, write in _TOLD.items():
            if name in parts and len({other[rest.index(name)] for other in keys}) > 1:
                told.append(write(parts[name]))
        titles[key] = ", ".join(told)
    return titles


_TOLD: dict[str, Callable[[Any], str]] = {
    "t_inference": lambda value: format_time(value),
    "jpeg": lambda value: "not compressed" if value is None else f"JPEG {value}",
    "samples": lambda value: f"{value} images",
    "calibration": lambda value: str(value).replace("_", " "),
}


def _draw(
    path: Path,
    axis: _Axis,
    panels: dict[tuple[Any, ...], str],
    records: Sequence[Record],
    labels: Sequence[str],
) -> None:
    metric = next(iter(records[0].metrics))
    columns = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.2 + 4.4 * columns, 0.4 + 3.4 * rows), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    names = {record.method: record.method_name for record in records}
    styles = line_styles([_Named(label, names[label]) for label in labels if label in names])  # type: ignore[misc]
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    seen: list[float] = []
    for panel, (key, title) in zip(grid, panels.items(), strict=False):
        seen += _draw_panel(panel, axis, key, records, styles, metric)
        panel.set_title(textwrap.fill(title.replace(",", ", ").replace(",  ", ", "), 48), fontsize=10)
    for index, panel in enumerate(grid):
        panel.set_visible(index < len(panels))
        if index % columns == 0:
            panel.set_ylabel(metric)
    # The marks' small shift keeps matplotlib from finding the limits itself; wide intervals of few chips may be cut.
    room = 0.1 * (max(seen) - min(seen)) or 1.0
    grid[0].set_ylim(min(seen) - room, max(seen) + room)
    handles = [Line2D([], [], color="black", linestyle=(0, (5, 3)), linewidth=1.2, label="digital")]
    for label, style in styles.items():
        handles.append(
            Line2D(
                [],
                [],
                color=style.color,
                marker=style.marker,
                linestyle=style.linestyle,
                markerfacecolor=style.face,
                label=textwrap.fill(label, 24),
            )
        )
    chips = len({record.chip_seed for record in records} - {None})
    title = "1 chip" if chips == 1 else f"{chips} chips,\n95% interval"
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9, title=title, title_fontsize=9)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


@dataclass(frozen=True)
class _Named:
    """What `line_styles` reads of a record."""

    method: str
    method_name: str


def _draw_panel(
    panel: Axes,
    axis: _Axis,
    key: tuple[Any, ...],
    records: Sequence[Record],
    styles: dict[str, LineStyle],
    metric: str,
) -> list[float]:
    """Draw one panel and return the values that must be seen."""
    rest = [name for name in ("scenario", "t_inference", "jpeg", "samples", "calibration") if name != axis.field]
    wanted = dict(zip(rest, key, strict=True))
    places = {value: axis.at(index, value) for index, value in enumerate(axis.values)}
    digital = {r.axis(axis.field): r.metrics[metric] for r in records if _digital_fits(r, axis, wanted)}
    line = [digital.get(value, digital.get(None, math.nan)) for value in axis.values]
    panel.plot(list(places.values()), line, color="black", linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
    seen = [value for value in line if not math.isnan(value)]
    if axis.log:
        panel.set_xscale("log", base=2)
    for index, (label, style) in enumerate(styles.items()):
        points = _MARK_GAP * (index - (len(styles) - 1) / 2)
        beside = panel.transData + ScaledTranslation(points / 72, 0, panel.figure.dpi_scale_trans)
        found: dict[Any, list[float]] = {}
        for record in records:
            if record.method == label and _fits(record, wanted):
                own = record.axis(axis.field)
                spread = axis.field in ("samples", "calibration") and record.axes["samples"] is None
                for value in axis.values if spread else [own]:
                    found.setdefault(value, []).append(record.metrics[metric])
        values = [value for value in axis.values if value in found]
        estimates = [estimate(found[value]) for value in values]
        x = [places[value] for value in values]
        halves = [0.0 if math.isnan(e.half_width) else e.half_width for e in estimates]
        means = [e.mean for e in estimates]
        seen += means
        panel.errorbar(
            x,
            means,
            yerr=halves if any(halves) else None,
            color=style.color,
            marker=style.marker,
            markersize=5,
            markerfacecolor=style.face,
            linestyle=style.linestyle,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2,
            zorder=3,
            transform=beside,
        )
    crowded = len(axis.values) > 6
    shown = [
        v for i, v in enumerate(axis.values) if not crowded or axis.log or i % math.ceil(len(axis.values) / 6) == 0
    ]
    panel.set_xticks([places[value] for value in shown], [axis.text(value) for value in shown], fontsize=8)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel(axis.label)
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    first, last = places[axis.values[0]], places[axis.values[-1]]
    if axis.log:
        panel.set_xlim(first / 1.4, last * 1.4)
    else:
        panel.set_xlim(first - 0.5, last + 0.5)
    return seen


def _fits(record: Record, wanted: dict[str, Any]) -> bool:
    """Whether a record belongs to a panel; one of a method without calibration images belongs to each of them."""
    loose = ("samples", "calibration") if record.axes["samples"] is None else ()
    return all(record.axis(name) == value for name, value in wanted.items() if name not in loose)


def _digital_fits(record: Record, axis: _Axis, wanted: dict[str, Any]) -> bool:
    return record.method_name == DIGITAL and (axis.field == "jpeg" or record.axes["jpeg"] == wanted.get("jpeg"))
