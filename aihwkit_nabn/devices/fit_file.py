"""A fitted device and its file: JSON that people can read and change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aihwkit_nabn.devices.curve import Curve, curve_from_json, field
from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.files import parse_json, write_text

FORMAT, VERSION = "nabn device fit", 1
#: Where a file has the curves: section and name, by the field of `DeviceFit`.
CURVES = {
    "offset_us": ("programming", "offset_us"),
    "spread_us": ("programming", "spread_us"),
    "exponent": ("drift", "exponent"),
    "exponent_spread": ("drift", "exponent_spread"),
    "read_spread": ("read", "relative_spread"),
}


@dataclass(frozen=True, kw_only=True)
class DeviceFit:
    """What a noise model needs to know of a device. All curves are functions of ``x = target / g_max``.

    Args:
        g_max_us: Conductance of the largest weight, uS.
        offset_us: Mean programmed conductance minus target, uS.
        spread_us: Standard deviation of the programmed conductance, uS.
        first_reading_s: Seconds after programming of the reading that counts as programmed; None: no drift was fitted.
        exponent: Mean drift exponent; None with `first_reading_s`.
        exponent_spread: Standard deviation of the drift exponent from device to device.
        read_spread: Standard deviation of a reading relative to the device's conductance; None: none was fitted.
    """

    g_max_us: float
    offset_us: Curve
    spread_us: Curve
    first_reading_s: float | None = None
    exponent: Curve | None = None
    exponent_spread: Curve | None = None
    read_spread: Curve | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON values, the part of a file that a noise model reads."""
        content: dict[str, Any] = {"g_max_us": self.g_max_us, "programming": None, "drift": None, "read": None}
        if self.first_reading_s is not None:
            content["drift"] = {"first_reading_s": self.first_reading_s}
        for name, (section, key) in CURVES.items():
            curve = getattr(self, name)
            if curve is not None:
                content[section] = (content[section] or {}) | {key: curve.to_json()}
        return content

    @property
    def digest(self) -> str:
        """Twelve digits that are the same only for fits with the same numbers."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


def fit_from_json(content: object, where: str = "fit") -> DeviceFit:
    """Return the fit that `DeviceFit.to_json` gave, or that a file holds.

    Raises:
        NabnError: something in it is missing or not allowed; the message begins with `where`.
    """
    found: dict[str, Any] = {
        "g_max_us": check_number(f"{where}: g_max_us", field(content, "g_max_us", where), exclusive_minimum=0.0)
    }
    for name, (section, key) in CURVES.items():
        part = field(content, section, where)
        if part is not None or section == "programming":
            place = f"{where}: {section}"
            found[name] = curve_from_json(field(part, key, place), f"{place}.{key}")
    drift = field(content, "drift", where)
    if drift is not None:
        seconds = field(drift, "first_reading_s", f"{where}: drift")
        found["first_reading_s"] = check_number(f"{where}: drift.first_reading_s", seconds, exclusive_minimum=0.0)
    return DeviceFit(**found)


def read_fit(path: str | Path) -> DeviceFit:
    """Return the fit in a file that `nabn fit` wrote.

    Raises:
        NabnError: it is missing, no JSON, of something else, of an unknown version, or a field has a value that is not
            allowed.
    """
    made_by = "nabn fit MEASUREMENTS.csv writes one"
    try:
        content = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise NabnError(f"fit must be a file with a fitted device ({made_by}): {path}: {error.strerror}") from error
    except ValueError as error:
        raise NabnError(f"{path} is no fitted device ({made_by}): {error}") from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, Mapping) else content
        raise NabnError(f"{path} is no fitted device ({made_by}): its format must be {FORMAT!r}, got {found!r}"[:300])
    if content.get("version") != VERSION:
        raise NabnError(
            f"{path}: version must be {VERSION}, the one this release reads, got {content.get('version')!r}"
        )
    return fit_from_json(content, str(path))


def write_fit(
    path: str | Path, fit: DeviceFit, about: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write a fit, with what people want to know of it besides.

    Args:
        path: The file; one of that name is replaced.
        fit: The device.
        about: JSON values about the measurements.
        details: By a curve's name in `DeviceFit`, what is written beside its numbers.

    Raises:
        NabnError: the file cannot be written.
    """
    content = fit.to_json()
    for name, more in details.items():
        section, key = CURVES[name]
        content[section][key] |= more
    write_text(
        Path(path), _lines({"format": FORMAT, "version": VERSION, **content, "measurements": dict(about)}) + "\n"
    )


def _lines(value: Any, indent: str = "") -> str:
    """Return JSON text with lists of numbers on one line."""
    if isinstance(value, Mapping) and value:
        inner = ",\n".join(f"{indent}  {json.dumps(key)}: {_lines(item, indent + '  ')}" for key, item in value.items())
        return f"{{\n{inner}\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "[\n" + ",\n".join(f"{indent}  {json.dumps(item)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)
