"""Write the list of files in each folder's README.md from the first lines of the files' docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- files: written by tools/folder_readmes.py -->", "<!-- end -->"
_BLOCK = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_ROW = re.compile(r"^\| `([^`]+)` \| (.*) \|$", re.MULTILINE)


def folders(root: Path = ROOT) -> Iterator[Path]:
    """Yield the folders that have a list: those with Python files in the package and in ``tools``, and ``configs``."""
    yield root / "configs"
    for top in (root / "aihwkit_nabn", root / "tools"):
        yield from sorted({path.parent for path in top.rglob("*.py")})


def entries(folder: Path) -> dict[str, str | None]:
    """Return what lies in a folder, subfolders first, and what each holds; None where no docstring says it."""
    found: dict[str, str | None] = {}
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        if path.name in ("README.md", "__init__.py", "__pycache__") or path.suffix == ".so" or path.name[0] == ".":
            continue
        source = path / "__init__.py" if path.is_dir() else path
        has_docstring = source.suffix == ".py" and source.exists()
        docstring = ast.get_docstring(ast.parse(source.read_text())) if has_docstring else None
        found[path.name + "/" * path.is_dir()] = docstring.splitlines()[0].removesuffix(".") if docstring else None
    return found


def page_of(folder: Path) -> str:
    """Return the folder's page as it should be.

    The text around the list is written by hand and stays. So do rows of the list on what has no docstring: C files, and
    folders without an ``__init__.py``.

    Raises:
        ValueError: Nothing says what a file holds.
    """
    page = folder / "README.md"
    text = page.read_text() if page.exists() else f"# {folder.name}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    by_hand = dict(_ROW.findall(text.partition(BEGIN)[2].partition(END)[0]))
    rows = []
    for name, what in entries(folder).items():
        what = what or by_hand.get(name)
        if not what:
            raise ValueError(f"{page}: add a row that says what {name} holds")
        rows.append(f"| `{name}` | {what} |")
    block = "\n".join([BEGIN, "", "| file | what it holds |", "|---|---|", *rows, "", END])
    return _BLOCK.sub(lambda _: block, text)


def main() -> None:
    """Write all pages; name those that changed."""
    for folder in folders():
        page, text = folder / "README.md", page_of(folder)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
