"""Errors of the package: each names the field, the value it had, and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Iterable, Sequence


class NabnError(ValueError):
    """Base of every error this package raises on purpose. A `ValueError`, so that generic handlers catch it."""


class UnknownNameError(NabnError, KeyError):
    """A name that no registry entry has.

    Args:
        kind: What was looked up, e.g. ``"noise model"``.
        name: The name as given.
        known: The names that exist.
        hint: What to do instead, where that is known; in place of the nearest name and the list.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        self.known = sorted(known)
        if not hint:
            alone = name_with_options(name)[0]
            near = (
                f": options do not go with the name {alone!r}" if alone in self.known else suggestion(name, self.known)
            )
            hint = f"{near}; known: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}{hint}")

    def __str__(self) -> str:
        # KeyError would show the repr of the message, quotes and all.
        return str(self.args[0])


class NotProgrammedError(NabnError):
    """The analog model holds no programmed chip yet."""


class ConversionError(NabnError):
    """A model, or one of its layers, cannot be converted as asked."""


class CalibrationError(NabnError):
    """A calibration set, a reference or a model with which calibration cannot be done."""


class NotApplicableError(CalibrationError):
    """A calibration method that has no place to act in this model."""


class VerificationError(ConversionError, CalibrationError):
    """An analog model does not compute what the digital one does, noise left out."""


class ChipFileError(NabnError):
    """A chip file that is missing, damaged, of something else, or of another network."""


class MissingDependencyError(NabnError, ImportError):
    """An optional package is not installed; the message holds the install line."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the known name nearest to `name`, or an empty string."""
    by_lower = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    return f", did you mean {by_lower[near[0]]!r}?" if near else ""


def listed(names: Sequence[str]) -> str:
    """Return the first three names, and dots for the rest."""
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def name_with_options(text: object) -> tuple[str, list[str]]:
    """Return the name and the options in a text such as ``"name:a=1,b=2"`` or ``"name(a=1)"``; empty in any other."""
    found = _NAME_WITH_OPTIONS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return "", []
    return found[1], [option.strip() for option in found[2].removesuffix(")").split(",")]


_NAME_WITH_OPTIONS = re.compile(r"\s*(\w+)\s*[:(](.*)", re.DOTALL)


def missing_extra(package: str, extra: str) -> MissingDependencyError:
    """Return the error for an optional `package` that the named extra of this project would install."""
    return MissingDependencyError(f"{package} is not installed; run: pip install 'aihwkit-nabn[{extra}]'")


def check_number(
    field: str,
    value: object,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    meaning: str = "",
) -> float:
    """Return `value` as a float if it is a finite number in range.

    Args:
        field: Name of the argument, for the message.
        value: What the user gave.
        minimum: Smallest allowed value.
        maximum: Largest allowed value.
        exclusive_minimum: The value must be larger than this.
        meaning: What the number is, for the message, where the field's name does not say it: ``"the share of ..."``.

    Raises:
        NabnError: `value` is no finite number or lies outside the range.
    """
    bounds = []
    if minimum is not None:
        bounds.append(f">= {minimum:g}")
    if exclusive_minimum is not None:
        bounds.append(f"> {exclusive_minimum:g}")
    if maximum is not None:
        bounds.append(f"<= {maximum:g}")
    allowed = "a finite number" + (" " + " and ".join(bounds) if bounds else "")
    if meaning and minimum is not None and maximum is not None:
        allowed = f"between {minimum:g} and {maximum:g}"
    allowed = f"{meaning}, {allowed}" if meaning else allowed
    if not is_finite_number(value):
        raise NabnError(f"{field} must be {allowed}, got {value!r}")
    number = float(value)  # type: ignore[arg-type]
    too_small = (minimum is not None and number < minimum) or (
        exclusive_minimum is not None and number <= exclusive_minimum
    )
    if too_small or (maximum is not None and number > maximum):
        raise NabnError(f"{field} must be {allowed}, got {value!r}")
    return number


def is_finite_number(value: object) -> bool:
    """Whether `value` is a real number (a bool is none) that a float can hold."""
    try:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def check_count(field: str, value: object, *, minimum: int = 0) -> int:
    """Return `value` if it is an integer of at least `minimum`.

    Raises:
        NabnError: `value` is no integer (a bool is none) or too small.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise NabnError(f"{field} must be an integer >= {minimum}, got {value!r}")
    return int(value)


def check_flag(field: str, value: object) -> bool:
    """Return `value` if it is True or False.

    Raises:
        NabnError: it is anything else.
    """
    if not isinstance(value, bool):
        raise NabnError(f"{field} must be True or False, got {value!r}")
    return value
