"""Measured conductances from a file with columns: what is read, and what is refused and where."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aihwkit_nabn.devices.curve import Array
from aihwkit_nabn.errors import NabnError, suggestion

#: Microsiemens per unit.
UNITS = {"uS": 1.0, "nS": 1e-3, "S": 1e6}
_CONDUCTANCES = ("target", "conductance")
_COLUMNS = (*_CONDUCTANCES, "seconds", "device")
_HEADING = re.compile(r"\s*([^\[(]*?)\s*(?:[\[(]\s*([^\])]*?)\s*[\])])?\s*")


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Rows of a file; all arrays ``[rows]``.

    Args:
        target: What each device was programmed to, uS.
        conductance: What was read, uS.
        seconds: When, since programming; all 0 where the file does not say.
        device: Which device, counted from 0; each row its own where the file does not say.
        columns: Names of the columns that were read.
        unit: Of the file's conductances.
        unused: Headings of columns that were not.
        source: Name of the file.
    """

    target: Array
    conductance: Array
    seconds: Array
    device: NDArray[np.int64]
    columns: tuple[str, ...] = _CONDUCTANCES
    unit: str = "uS"
    unused: tuple[str, ...] = ()
    source: str = field(default="", compare=False)


def read_measurements(path: str | Path, unit: str | None = None) -> Measurements:
    """Return the measurements in a file with one row per reading.

    The first line names the columns, in any order, separated by commas, semicolons or tabs: ``target`` and
    ``conductance``; ``seconds`` since programming; ``device``, any text that is the same for readings of one device.
    Rows of one device at one time are repeated readings. Other columns are not used.

    Args:
        path: The file.
        unit: ``uS``, ``nS`` or ``S``; None: what the headings say (``target [nS]``), or uS.

    Raises:
        NabnError: the file is missing, no such table, or holds a value that is not allowed; the message names line,
            column and value.
    """
    path = Path(path)
    if unit is not None and unit not in UNITS:
        raise NabnError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    lines = _rows(path)
    places, found_unit, unused = _header(lines[0][1], path, unit)
    if len(lines) == 1:
        raise NabnError(f"{path} has no rows below its headings")
    values: dict[str, list[float]] = {name: [] for name in places if name != "device"}
    devices: dict[str, int] = {}
    device: list[int] = []
    last: dict[tuple[str, float], float] = {}
    for number, row in lines[1:]:
        if len(row) != len(lines[0][1]):
            raise NabnError(f"{path}, line {number} must have {len(lines[0][1])} values, got {len(row)}")
        for name in values:
            values[name].append(_number(row[places[name]], name, f"{path}, line {number}"))
        if "device" in places:
            name = row[places["device"]].strip()
            device.append(devices.setdefault(name, len(devices)))
            if "seconds" in values:
                now, place = values["seconds"][-1], (name, values["target"][-1])
                if now < last.get(place, now):
                    raise NabnError(
                        f"{path}, line {number}: seconds must not decrease for a device, got {now:g} after "
                        f"{last[place]:g} for device {name!r}"
                    )
                last[place] = now
    scale = UNITS[found_unit]
    seconds = values.get("seconds", [0.0] * len(values["target"]))
    if "device" not in places and len(set(seconds)) > 1:
        raise NabnError(
            f"{path} has several times in its column seconds, but no column device: drift needs to know which rows are "
            "readings of the same device"
        )
    return Measurements(
        target=np.array(values["target"]) * scale,
        conductance=np.array(values["conductance"]) * scale,
        seconds=np.array(seconds),
        device=np.array(device or range(len(seconds)), dtype=np.int64),
        columns=tuple(places),
        unit=found_unit,
        unused=unused,
        source=path.name,
    )


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty, with their numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise NabnError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise NabnError(f"{path} is no table of text with columns (CSV)") from error
    if not text.strip():
        raise NabnError(f"{path} is empty; its first line must name the columns {', '.join(_CONDUCTANCES)}")
    first = text.lstrip().splitlines()[0]
    reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
    try:
        return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise NabnError(f"{path} is no table of text with columns (CSV): line {reader.line_num}: {error}") from error


def _header(header: list[str], path: Path, unit: str | None) -> tuple[dict[str, int], str, tuple[str, ...]]:
    """Return where each column is, the unit of conductances, and the headings that mean nothing here."""
    places: dict[str, int] = {}
    units: dict[str, str] = {}
    unused = []
    for index, heading in enumerate(header):
        matched = _HEADING.fullmatch(heading)
        name = (matched[1] if matched else heading).lower()
        if name not in _COLUMNS:
            unused.append(heading.strip())
            continue
        if name in places:
            raise NabnError(f"{path} has two columns {name!r}")
        places[name] = index
        if matched and matched[2] and name in _CONDUCTANCES:
            units[name] = matched[2].replace("µ", "u").replace("μ", "u")
            if units[name] not in UNITS:
                raise NabnError(f"{path}: the unit of {name!r} must be one of {', '.join(UNITS)}, got {matched[2]!r}")
    for name in _CONDUCTANCES:
        if name not in places:
            near = suggestion(name, unused)
            raise NabnError(f"{path} has no column {name!r}{near}; its columns: {', '.join(header)}"[:500])
    given = {name: units[name] for name in _CONDUCTANCES if name in units} | ({"--unit": unit} if unit else {})
    if len(set(given.values())) > 1 or (len(units) == 1 and unit is None):
        said = ", ".join(f"{name} in {value}" for name, value in given.items())
        missing = next((f", {name} without one" for name in _CONDUCTANCES if name not in units), "")
        raise NabnError(f"{path} mixes units: {said}{'' if unit else missing}; all conductances must be in one")
    return places, next(iter(given.values()), "uS"), tuple(unused)


def _number(text: str, name: str, where: str) -> float:
    allowed = "a finite number > 0 (seconds since programming)" if name == "seconds" else "a finite number >= 0"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (name == "seconds" and value == 0):
        raise NabnError(f"{where}: {name} must be {allowed}, got {text.strip()!r}")
    return value
