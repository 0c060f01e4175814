"""Times after programming, in seconds or as text such as ``1d``."""

from __future__ import annotations

import difflib
import math
import numbers
import re

from aihwkit_nabn.errors import NabnError

_YEAR = 365.25 * 86_400.0
# By the unit that stands for them.
_WORDS = {"s": "second", "min": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "mo": _YEAR / 12, "y": _YEAR}
_PATTERN = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_time(time: float | str) -> float:
    """Return seconds from a number of seconds or a text such as ``"1h"``, ``"1.5d"``, ``"10y"``.

    Units: s, min, h, d, w, mo (a twelfth of a year), y (365.25 days).

    Raises:
        NabnError: the time is negative, not finite, or not readable; of ``"2 weeks"`` the message suggests ``"2w"``.
    """
    allowed = f"seconds >= 0 or a number with one of {', '.join(UNITS)}"
    seconds: float | None = None
    if isinstance(time, str):
        match = _PATTERN.fullmatch(time)
        seconds = None if match is None else _seconds(match[1], match[2].lower() or "s")
    elif isinstance(time, numbers.Real) and not isinstance(time, bool):
        seconds = float(time)
    if seconds is None or not 0 <= seconds < math.inf:
        raise NabnError(f"time must be {allowed}, got {time!r}{_nearest(time)}")
    return seconds


def _seconds(number: str, unit: str) -> float | None:
    """Return a number of units in seconds, None where the text is no finite number or there is no such unit."""
    try:
        seconds = float(number) * UNITS[unit]
    except (KeyError, ValueError):
        return None
    return seconds if math.isfinite(seconds) else None


def _nearest(time: object) -> str:
    """Return ``", did you mean '1d'?"`` for a number with a unit written out, shortened or misspelt, or nothing."""
    match = _PATTERN.fullmatch(time) if isinstance(time, str) else None
    if match is None:
        return ""
    word = match[2].lower()
    word = word.removesuffix("s") if len(word) > 2 else word
    near = [unit for unit, name in _WORDS.items() if _shortens(word, name)]
    if not near:
        close = difflib.get_close_matches(word, list(_WORDS.values()), n=1)
        near = [unit for unit, name in _WORDS.items() if name in close]
    texts = [repr(f"{match[1]}{unit}") for unit in near if _seconds(match[1], unit) is not None]
    return f", did you mean {' or '.join(texts)}?" if texts else ""


def _shortens(word: str, name: str) -> bool:
    """Return whether the letters of a word stand in a name in this order, from the same first one on."""
    letters = iter(name)
    return word[:1] == name[:1] and all(letter in letters for letter in word)


def format_time(seconds: float) -> str:
    """Return a time in the largest unit that it is a whole or short number of: ``86400.0`` gives ``"1d"``."""
    for unit in ("y", "mo", "d", "h", "min"):
        value = seconds / UNITS[unit]
        if value >= 1 and math.isclose(value, round(value, 1), rel_tol=1e-9):
            return f"{round(value, 1):g}{unit}"
    return f"{seconds:g}s"
