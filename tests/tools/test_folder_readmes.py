"""Each folder's README names each of its files once, with what it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("folder_readmes")


def test_the_pages_are_as_the_tree_is(tool: ModuleType) -> None:
    folders = list(tool.folders())
    assert {folder.name for folder in folders} >= {"configs", "aihwkit_nabn", "nn", "methods", "tools", "benchmarks"}
    for folder in folders:
        page = folder / "README.md"
        assert page.exists() and page.read_text() == tool.page_of(folder), "run python tools/folder_readmes.py"


@pytest.fixture
def folder(tmp_path: Path, tool: ModuleType) -> Path:
    (tmp_path / "one.py").write_text('"""One thing.\n\nAt length."""\n')
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "__init__.py").write_text('"""A part: `x`."""\n')
    (tmp_path / "__init__.py").write_text('"""All of it."""\n')
    (tmp_path / "README.md").write_text(f"# folder\n\nBy hand.\n\n{tool.BEGIN}\n{tool.END}\n\n## More\n")
    return tmp_path


def test_text_by_hand_stays_around_the_list(tool: ModuleType, folder: Path) -> None:
    before, _, behind = tool.page_of(folder).partition(tool.BEGIN)
    rows, _, behind = behind.partition(tool.END)
    assert before == "# folder\n\nBy hand.\n\n" and behind == "\n\n## More\n"
    assert rows.strip().splitlines()[2:] == ["| `part/` | A part: `x` |", "| `one.py` | One thing |"]


def test_what_no_docstring_says_is_said_by_hand_and_kept(tool: ModuleType, folder: Path) -> None:
    (folder / "two.c").touch()
    with pytest.raises(ValueError, match="add a row that says what two.c holds"):
        tool.page_of(folder)
    page = folder / "README.md"
    page.write_text(page.read_text().replace(tool.END, f"| `two.c` | The same in C |\n{tool.END}"))
    page.write_text(tool.page_of(folder))
    assert page.read_text().count("| `two.c` | The same in C |") == 1 == page.read_text().count("`one.py`")


def test_a_file_that_is_gone_leaves_the_list(tool: ModuleType, folder: Path) -> None:
    page = folder / "README.md"
    page.write_text(tool.page_of(folder))
    (folder / "one.py").rename(folder / "other.py")
    assert page.read_text() != tool.page_of(folder)
    assert "`one.py`" not in tool.page_of(folder) and "| `other.py` | One thing |" in tool.page_of(folder)


def test_a_folder_without_a_page_gets_one(tool: ModuleType, folder: Path) -> None:
    (folder / "README.md").unlink()
    assert tool.page_of(folder).startswith(f"# {folder.name}\n\n{tool.BEGIN}\n")
