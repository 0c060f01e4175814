"""Writing files so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from aihwkit_nabn.errors import NabnError


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Raises:
        NabnError: the file cannot be written.
    """
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file that is there.

    Raises:
        NabnError: it cannot be written; earlier lines are whole.
    """
    try:
        with path.open("a") as file:
            file.write(f"{line}\n")
    except OSError as error:
        raise NabnError(f"cannot write {path}: {error.strerror or error}; what it holds already stays") from error


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
