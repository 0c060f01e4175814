"""Reading options and descriptions strictly: unknown keys, wrong kinds and repeated values are errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from aihwkit_nabn.errors import NabnError, check_count, suggestion

_T = TypeVar("_T")


def check_mapping(where: str, content: object, known: Sequence[str], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return `content` as a dict if it is a mapping with none but known keys, and with those required.

    Args:
        where: What it is, for messages: ``"the sweep"``.
        content: What the file holds.
        known: Keys that are allowed.
        required: Keys that must be there.

    Raises:
        NabnError: it is no mapping, a key is unknown (the nearest is suggested), or one is missing.
    """
    if not isinstance(content, Mapping):
        raise NabnError(f"{where} must be a mapping with keys of {', '.join(known)}, got {short(content)}")
    for key in content:
        if key not in known:
            near = suggestion(key, known)
            raise NabnError(f"{where} has the unknown key {short(key)}{near}; known: {', '.join(known)}")
    for key in required:
        if key not in content:
            raise NabnError(f"{where} lacks {key!r}")
    return dict(content)


def check_list(field: str, value: object, check: Callable[[str, Any], _T]) -> tuple[_T, ...]:
    """Return the checked entries of a list; a single value is a list of one.

    Args:
        field: Name, for messages.
        value: What the file holds.
        check: Called as ``check(field, entry)``; returns the entry as it is to be kept.

    Raises:
        NabnError: the list is empty, an entry is given twice, or `check` refuses one.
    """
    entries = list(value) if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise NabnError(f"{field} must hold at least one entry, got an empty list")
    checked: list[_T] = []
    for entry in entries:
        kept = check(field, entry)
        if kept in checked:
            raise NabnError(f"{field} must not hold an entry twice, got {short(entry)} twice")
        checked.append(kept)
    return tuple(checked)


def check_text(field: str, value: object) -> str:
    """Return `value` if it is text on one line, not empty.

    Raises:
        NabnError: it is anything else.
    """
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) > 1:
        raise NabnError(f"{field} must be text on one line, got {short(value)}")
    return value.strip()


def check_positive(field: str, value: object) -> int:
    """Return `value` if it is an integer >= 1.

    Raises:
        NabnError: it is anything else.
    """
    return check_count(field, value, minimum=1)


def check_choice(field: str, value: object, known: Sequence[str]) -> str:
    """Return `value` if it is among the known words.

    Raises:
        NabnError: it is not; the nearest is suggested.
    """
    if not isinstance(value, str) or value not in known:
        raise NabnError(f"{field} must be one of {', '.join(known)}, got {short(value)}{suggestion(value, known)}")
    return value


def short(value: object) -> str:
    """Return a value's text for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_arguments(field: str, value: object) -> dict[str, Any]:
    """Return `value` if it is a mapping from names of arguments to values.

    Raises:
        NabnError: it is anything else.
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise NabnError(f"{field} must be a mapping from names of arguments to values, got {short(value)}")
    return dict(value)
