"""Tables that scripts put into pages of docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_text


def write_between(path: Path, begin: str, end: str, text: str, *, title: str) -> None:
    """Put `text` between two lines of a document; what stands around them stays.

    A missing document is made, of the title and these lines.

    Raises:
        NabnError: the document lacks one of the lines, or cannot be written.
    """
    page = path.read_text() if path.is_file() else f"# {title}\n\n{begin}\n{end}\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise NabnError(f"{path} has no lines {begin} and {end} for the table to stand between")
    write_text(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], align: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table; a column is aligned ``"---"`` or, to the right, ``"---:"``."""
    return [f"| {' | '.join(cells)} |" for cells in (headings, align, *rows)]
