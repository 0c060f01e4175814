"""What mmcv's other operators say when they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from aihwkit_nabn.errors import MissingDependencyError
from aihwkit_nabn.stacks import compile_mmcv


def refusal(name: str) -> Callable[..., NoReturn]:
    """Return the function that stands for an operator that is left out."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise MissingDependencyError(
            f"mmcv's operator {name!r}, called by {_caller()}, is not among those that aihwkit_nabn computes with "
            f"torchvision (docs/operators.md lists them); it needs mmcv compiled, with a C++ compiler, 10 to 30 "
            f"minutes:\n{compile_mmcv()}"
        )

    refuse.__name__ = refuse.__qualname__ = name
    return refuse


def _caller() -> str:
    """Return module and line of the code that asked mmcv for the operator."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("mmcv", "torch"):
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}"
