"""Files: written in one step, so that nobody finds half a file; JSON read whoever wrote it."""

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
    raise ValueError(f"{name} is not a finite number")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Raises:
        NabnError: the file cannot be written.
    """
    write_bytes(path, text.encode())


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
