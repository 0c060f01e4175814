"""mmcv's compiled operators and ours in one process, for comparing them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from aihwkit_nabn.errors import MissingDependencyError
from aihwkit_nabn.openmmlab.config import require
from aihwkit_nabn.stacks import compile_mmcv


def ours() -> ModuleType:
    """Return our operators."""
    from aihwkit_nabn.openmmlab import operators

    return operators


def compiled() -> ModuleType | None:
    """Return mmcv's compiled operators, None where mmcv has none.

    Raises:
        MissingDependencyError: mmcv is not installed.
    """
    require("mmcv")
    module: ModuleType = require("mmcv._ext")
    return None if hasattr(module, "__all__") else module  # ours, which stand in for it, have that list


def require_compiled() -> ModuleType:
    """Return mmcv's compiled operators.

    Raises:
        MissingDependencyError: mmcv is not installed, or not compiled; the message has the command.
    """
    module = compiled()
    if module is None:
        raise MissingDependencyError(
            "this mmcv has no compiled operators to compare with; compile them (a C++ compiler, 10 to 30 minutes), "
            f"best in an environment of its own: {compile_mmcv()}"
        )
    return module


class Called:
    """Operators, and which of them were called.

    Attributes:
        names: Of those that were.
    """

    def __init__(self, operators: ModuleType) -> None:
        self._operators = operators
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._operators, name)
        self.names.add(name)
        return function


@contextmanager
def mmcv_calls(operators: ModuleType) -> Iterator[Called]:
    """Let all of mmcv call these operators inside the block; yields which it called."""
    require("mmcv.ops")
    called = Called(operators)
    modules = [module for name, module in sys.modules.items() if name.startswith("mmcv.ops.")]
    before = {module: module.ext_module for module in modules if hasattr(module, "ext_module")}
    try:
        for module in before:
            module.ext_module = called  # type: ignore[attr-defined]
        yield called
    finally:
        for module, operators in before.items():
            module.ext_module = operators  # type: ignore[attr-defined]
