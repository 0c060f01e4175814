"""The lower floors of the house: imports run downwards, and name the module that defines what they want."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aihwkit_nabn

PACKAGE = Path(aihwkit_nabn.__file__).parent
GROUND = ("errors", "registry", "seeding", "drawing", "files", "native", "_version")
FLOORS = (GROUND, ("noise",), ("simulator",), ("nn",), ("chip",), ("calibration",))
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules of the package that a file imports from, and the names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aihwkit_nabn"):
            yield str(node.module), [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            yield from ((name.name, []) for name in node.names if name.name.startswith("aihwkit_nabn"))


def rooms_of(module: str, names: list[str]) -> list[str]:
    inner = module.split(".")[1:]
    return [inner[0]] if inner else names


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=lambda floor: FLOORS[floor][-1])
def test_imports_run_downwards(floor: int) -> None:
    allowed = {room for below in FLOORS[: floor + 1] for room in below}
    for room in FLOORS[floor]:
        for path in [*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")]:
            for module, names in imports_of(path):
                assert set(rooms_of(module, names)) <= allowed, f"{path.relative_to(PACKAGE)} imports {module}"


def defined_in(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def test_importers_name_the_module_that_defines_what_they_want() -> None:
    """A module of these floors gives what it defines; packages list what they offer."""
    homes = {room for floor in FLOORS for room in floor}
    for path in FILES:
        for module, names in imports_of(path):
            home = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
            if home.is_file() and not homes.isdisjoint(home.relative_to(PACKAGE).with_suffix("").parts):
                missing = set(names) - defined_in(home)
                assert not missing, f"{path.relative_to(PACKAGE)} imports {missing} from {module}"


def test_products_know_no_configurations() -> None:
    for path in (PACKAGE / "simulator" / "product").rglob("*.py"):
        for module, _ in imports_of(path):
            assert not module.startswith("aihwkit_nabn.simulator.config"), path
            assert module != "aihwkit_nabn.simulator", path
