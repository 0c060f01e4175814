"""The lower floors of the house: imports name the module that defines what they want."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import aihwkit_nabn

PACKAGE = Path(aihwkit_nabn.__file__).parent
FLOORS = set("errors registry seeding drawing files native noise simulator nn chip calibration".split())
FILES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules of the package that a file imports from, and the names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aihwkit_nabn"):
            yield str(node.module), [name.name for name in node.names]
        elif isinstance(node, ast.Import):
            yield from ((name.name, []) for name in node.names if name.name.startswith("aihwkit_nabn"))


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
    for path in FILES:
        for module, names in imports_of(path):
            home = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
            if home.is_file() and not FLOORS.isdisjoint(home.relative_to(PACKAGE).with_suffix("").parts):
                missing = set(names) - defined_in(home)
                assert not missing, f"{path.relative_to(PACKAGE)} imports {missing} from {module}"
