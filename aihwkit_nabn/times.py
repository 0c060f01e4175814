"""Times after programming, in seconds or as people write them."""

from __future__ import annotations

import math
import numbers
import re

from aihwkit_nabn.errors import NabnError

_YEAR = 365.25 * 86_400.0
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "mo": _YEAR / 12, "y": _YEAR}
_PATTERN = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_time(time: float | str) -> float:
    """Return seconds from a number of seconds or a text such as ``"1h"``, ``"1.5d"``, ``"10y"``.

    Units: s, min, h, d, w, mo (a twelfth of a year), y (365.25 days).

    Raises:
        NabnError: the time is negative, not finite, or not readable.
    """
    allowed = f"seconds >= 0 or a number with one of {', '.join(UNITS)}"
    seconds: float | None = None
    if isinstance(time, str):
        match = _PATTERN.fullmatch(time)
        if match and (match[2].lower() or "s") in UNITS:
            try:
                seconds = float(match[1]) * UNITS[match[2].lower() or "s"]
            except ValueError:
                seconds = None
    elif isinstance(time, numbers.Real) and not isinstance(time, bool):
        seconds = float(time)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise NabnError(f"time must be {allowed}, got {time!r}")
    return seconds


def format_time(seconds: float) -> str:
    """Return a time in the largest unit that it is a whole or short number of: ``86400.0`` gives ``"1d"``."""
    for unit in ("y", "mo", "d", "h", "min"):
        value = seconds / UNITS[unit]
        if value >= 1 and math.isclose(value, round(value, 1), rel_tol=1e-9):
            return f"{round(value, 1):g}{unit}"
    return f"{seconds:g}s"
