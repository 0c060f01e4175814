"""One plot per axis that a sweep goes over: calibration images, their origin, JPEG quality, place in a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aihwkit_nabn.reporting.plot import Axis, draw_panels
from aihwkit_nabn.results import DIGITAL, Cell, Record, Results
from aihwkit_nabn.studies.grid.results import labels_of
from aihwkit_nabn.studies.grid.spec import SweepSpec
from aihwkit_nabn.studies.grid.stream import times_of
from aihwkit_nabn.times import UNITS, format_time

_MOST_PANELS = 9
_MOST_TICKS = 6
_SPACED = ("samples", "calibration")  # axes that methods without calibration images do not have


@dataclass(frozen=True, kw_only=True)
class _Swept:
    """An axis of the sweep that goes from left to right.

    Attributes:
        field: Of `Record`.
        values: In their order from left to right.
        label: Text below the axis.
        text: A value's text.
        log: Whether values stand where their logarithm has them, not side by side.
    """

    field: str
    values: Sequence[Any]
    label: str
    text: Callable[[Any], str] = str
    log: bool = False

    def axis(self) -> Axis:
        """Return the horizontal axis; a scenario there is a value's text."""
        places = {self.text(value): float(value if self.log else i) for i, value in enumerate(self.values)}
        step = 1 if self.log else math.ceil(len(places) / _MOST_TICKS)
        ticks = {place: name for name, place in list(places.items())[::step]}
        return Axis(position=places, label=self.label, ticks=ticks, log=self.log)


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
    order = {label: place for place, label in enumerate(labels_of(spec))}
    mine = sorted((r for r in records if r.axes["model"] == model), key=lambda r: order.get(r.method, -1))
    metric = next(iter(mine[0].metrics))
    written = []
    for swept in _axes(spec):
        panels = list(_panels(swept, mine))
        for number, begin in enumerate(range(0, len(panels), _MOST_PANELS), start=1):
            path = folder / f"{swept.field}{'' if number == 1 else f'_{number}'}.png"
            shown = panels[begin : begin + _MOST_PANELS]
            cells = {title: cells for title, cells, _ in shown}
            digital = {title: line for title, _, line in shown}
            written.append(draw_panels(path, cells, digital, metric, spec.chips, swept.axis()))
    return written


def _axes(spec: SweepSpec) -> Iterator[_Swept]:
    if len(spec.samples) > 1:
        yield _Swept(field="samples", values=sorted(spec.samples), label="calibration images", log=True)
    if len(spec.jpeg) > 1:
        order = sorted(spec.jpeg, key=lambda quality: math.inf if quality is None else quality)
        yield _Swept(field="jpeg", values=order, label="JPEG quality", text=lambda q: "none" if q is None else str(q))
    if len(spec.calibration) > 1:
        yield _Swept(field="calibration", values=spec.calibration, label="calibration images", text=_words)
    if spec.stream is not None:
        times = times_of(spec.stream, spec.time[0])
        texts = {
            end: f"{end}\n{_round_time(seconds)}" if spec.stream.drift else str(end)
            for end, seconds in zip(spec.stream.ends, times, strict=True)
        }
        label = "images of the stream" + (" and time after programming" if spec.stream.drift else "")
        yield _Swept(field="position", values=spec.stream.ends, label=label, text=texts.__getitem__)


def _round_time(seconds: float) -> str:
    for unit in ("y", "d", "h", "min"):
        if seconds >= 0.95 * UNITS[unit]:
            value = seconds / UNITS[unit]
            return f"{value:.{0 if value >= 9.95 else 1}f}{unit}".replace(".0", "")
    return f"{seconds:.2g}s"


def _words(value: object) -> str:
    return str(value).replace("_", " ")


_TOLD: dict[str, Callable[[Any], str]] = {
    "scenario": str,
    "t_inference": format_time,
    "jpeg": lambda value: "not compressed" if value is None else f"JPEG {value}",
    "samples": lambda value: f"{value} images",
    "calibration": _words,
}


def _panels(swept: _Swept, records: Sequence[Record]) -> Iterator[tuple[str, list[Cell], dict[str, float]]]:
    """Yield each panel's title, its cells with the axis's values as scenarios, and the digital model's values."""
    metric = next(iter(records[0].metrics))
    rest = [name for name in _TOLD if name != swept.field]
    chips = [record for record in records if record.method_name != DIGITAL]
    # Methods without calibration images belong to every panel.
    full = [record for record in chips if record.axes["samples"] is not None] or chips
    keys = list(dict.fromkeys(tuple(record.axis(name) for name in rest) for record in full))
    keys.sort(key=lambda key: [(isinstance(part, str), part is None, 0 if part is None else part) for part in key])
    for key in keys:
        wanted = dict(zip(rest, key, strict=True))
        varied = [name for place, name in enumerate(rest) if len({other[place] for other in keys}) > 1]
        title = ", ".join(_TOLD[name](wanted[name]) for name in rest if name == "scenario" or name in varied)
        found = []
        for record in chips:
            loose = _SPACED if record.axes["samples"] is None else ()
            if all(record.axis(name) == value for name, value in wanted.items() if name not in loose):
                for value in swept.values if swept.field in loose else [record.axis(swept.field)]:
                    found.append(replace(record, scenario=swept.text(value)))
        digital = {
            record.axis(swept.field): record.metrics[metric]
            for record in records
            if record.method_name == DIGITAL and wanted.get("jpeg", record.axes["jpeg"]) == record.axes["jpeg"]
        }
        line = {swept.text(value): digital.get(value, digital.get(None, math.nan)) for value in swept.values}
        yield title, Results(records=found, digital={metric: math.nan}, settings={}).cells(), line
