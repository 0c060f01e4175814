from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))  # where scripts find each other


@pytest.fixture
def load_tool() -> Callable[[str], ModuleType]:
    """Return a function that imports a script of ``tools/``, which is no package."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).parents[2] / "tools" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"nabn_tool_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
