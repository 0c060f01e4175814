"""Errors of the package: each names the field, the value it had, and what is allowed."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Collection, Iterable


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


def some(names: Collection[str], most: int = 3) -> str:
    """Return the first of the names, with commas, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; where it has none, the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
    """Return `value` as a float if it is a finite number in range; `exclusive_minimum` itself is not.

    The message says what the number means, ``"the share of ..."``, where the field's name does not.

    Raises:
        NabnError: `value` is no finite number or lies outside the range.
    """
    limits = [(">=", operator.ge, minimum), (">", operator.gt, exclusive_minimum), ("<=", operator.le, maximum)]
    given = [(sign, holds, limit) for sign, holds, limit in limits if limit is not None]
    allowed = f"a finite number {' and '.join(f'{sign} {limit:g}' for sign, _, limit in given)}".rstrip()
    if meaning and minimum is not None and maximum is not None:
        allowed = f"between {minimum:g} and {maximum:g}"
    allowed = f"{meaning}, {allowed}" if meaning else allowed
    number = float(value) if is_finite_number(value) else math.nan  # type: ignore[arg-type]
    if math.isnan(number) or not all(holds(number, limit) for _, holds, limit in given):
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
