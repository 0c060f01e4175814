"""Files: written so that a reader finds the old one or the new one, never half of one; read whoever wrote them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError


def parse_json(text: str | bytes) -> Any:
    """Return JSON values, of a text that anybody may have written.

    Raises:
        ValueError: it is no JSON, no UTF-8, holds NaN, infinity or half a character, or is nested too deeply.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_refuse_constant)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # half characters, and 1e999
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _refuse_constant(name: str) -> float:
    # Python's reader takes NaN and Infinity, which no file of ours holds.
    raise ValueError(f"{name} is no finite number")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Raises:
        NabnError: the file cannot be written.
    """
    write_bytes(path, text.encode())


def write_between(path: Path, begin: str, end: str, text: str, *, title: str) -> None:
    """Put `text` into a document, between two of its lines; what stands around them stays.

    Args:
        path: The document; a missing one is made, of a title and these lines.
        begin: The line before.
        end: The line behind.
        text: In place of what stands there.
        title: Of a document that is made.

    Raises:
        NabnError: the document lacks one of the lines, or cannot be written.
    """
    page = path.read_text() if path.is_file() else f"# {title}\n\n{begin}\n{end}\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise NabnError(f"{path} has no lines {begin} and {end} for the table to stand between")
    write_text(path, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step.

    Raises:
        NabnError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise NabnError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
