"""Parse the command line's form of a noise setting."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from aihwkit.inference.compensation.drift import GlobalDriftCompensation

from aihwkit_nabn.errors import NabnError

_FORM = "expected NAME or NAME:OPTION=VALUE,OPTION=VALUE, several joined with +"
# A plus before a letter: that of 1e+3 is none.
_JOIN = re.compile(r"\+(?=\s*(?:[A-Za-z_+]|$))")


def split_text(text: object) -> list[tuple[str, dict[str, str]]]:
    """Return the name and the options, still as text, of each effect in a noise setting.

    What stands alone right behind the colon, ``"measured:device.json"``, is the value of the option ``""``.

    Raises:
        NabnError: the text is malformed, or an option is given twice to one effect.
    """
    if not isinstance(text, str) or not text.strip():
        raise NabnError(f"malformed preset {text!r}: {_FORM}")
    parts = []
    for part in _JOIN.split(text):
        name, colon, tail = part.partition(":")
        if not name.strip():
            raise NabnError(f"malformed preset {text!r}: {_FORM}")
        options: dict[str, str] = {}
        for index, item in enumerate(tail.split(",") if colon else ()):
            option, equals, value = (piece.strip() for piece in item.partition("="))
            if not equals and index == 0:
                option, equals, value = "", "=", option
            elif not option:
                value = ""
            if not (equals and value):
                raise NabnError(f"malformed option {item!r} in preset {text!r}: {_FORM}")
            if option in options:
                raise NabnError(f"option {option!r} is given twice in preset {text!r}")
            options[option] = value
        parts.append((name.strip(), options))
    return parts


def parse_value(option: str, text: str) -> Any:
    """Return what an option's text stands for: true, false, none, an integer, a number, a compensation, or text."""
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if option == "drift_compensation" and text == "global":
        return GlobalDriftCompensation()
    kinds: tuple[Callable[[str], int | float], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text
