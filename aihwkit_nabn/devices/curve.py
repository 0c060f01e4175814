"""A parameter of a device as a function of its target: a polynomial, or a table with lines between its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aihwkit_nabn.errors import NabnError, is_finite_number, suggestion

Array = NDArray[np.float64]

#: What a form's numbers are called in a file: those over x, and the values.
FORMS = {"polynomial": ("range", "coefficients"), "table": ("x", "values")}


@dataclass(frozen=True)
class Curve:
    """A function of ``x = target / g_max``; beyond the measured targets it keeps its value at the last of them.

    Args:
        form: ``"polynomial"`` or ``"table"``.
        x: Smallest and largest measured x of a polynomial; the points of a table, increasing.
        values: Coefficients of a polynomial, of 1, x, x^2 and so on; the values at a table's points.
    """

    form: str
    x: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, x: Array) -> Array:
        """Return the values at `x`, an array of any shape."""
        if self.form == "table":
            return np.asarray(np.interp(x, self.x, self.values))
        return np.asarray(np.polynomial.polynomial.polyval(np.clip(x, self.x[0], self.x[-1]), self.values))

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON values."""
        over, values = FORMS[self.form]
        return {"form": self.form, over: list(self.x), values: list(self.values)}


def curve_from_json(content: object, where: str) -> Curve:
    """Return the curve that `Curve.to_json` gave; keys that a fit adds are left alone.

    Raises:
        NabnError: something in it is missing or not allowed; the message begins with `where`.
    """
    form = field(content, "form", where)
    if not isinstance(form, str) or form not in FORMS:
        raise NabnError(f"{where}.form must be one of {', '.join(FORMS)}, got {form!r}")
    over, name = FORMS[form]
    x, values = (_numbers(field(content, key, where), f"{where}.{key}") for key in (over, name))
    if any(low >= high for low, high in pairwise(x)) or (form == "polynomial" and len(x) != 2):
        raise NabnError(f"{where}.{over} must be {'two ' * (form == 'polynomial')}increasing numbers, got {list(x)}")
    if form == "table" and len(x) != len(values):
        raise NabnError(f"{where} must have as many values as x, got {len(values)} and {len(x)}")
    return Curve(form, x, values)


def field(content: object, name: str, where: str) -> Any:
    """Return an entry of a JSON object.

    Raises:
        NabnError: it is no object, or has no such entry.
    """
    if not isinstance(content, Mapping):
        raise NabnError(f"{where} must be an object with {name!r}, got {content!r}")
    if name not in content:
        raise NabnError(f"{where} lacks {name!r}{suggestion(name, [str(key) for key in content])}")
    return content[name]


def _numbers(content: object, where: str) -> tuple[float, ...]:
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise NabnError(f"{where} must be a list of numbers, got {content!r}")
    for value in content:
        if not is_finite_number(value):
            raise NabnError(f"{where} must hold finite numbers, got {value!r}")
    return tuple(float(value) for value in content)
