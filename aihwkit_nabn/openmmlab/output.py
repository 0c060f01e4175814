"""Writing what mmengine and the metrics print to a file."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aihwkit_nabn.errors import NabnError


class _Output(io.TextIOBase):
    """Where mmengine's loggers write: they keep the stream they were made with, after the run that made them, too."""

    file: TextIO | None = None

    def write(self, text: str) -> int:
        return (self.file or sys.__stderr__ or io.StringIO()).write(text)

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()


_OUTPUT = _Output()


@contextlib.contextmanager
def output_in(folder: Path) -> Iterator[None]:
    """Put what mmengine and the metrics print into ``output.txt`` of a folder, where a command shows its own table.

    Raises:
        NabnError: the file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "output.txt").open("a")
    except OSError as error:
        raise NabnError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file, contextlib.redirect_stdout(_OUTPUT), contextlib.redirect_stderr(_OUTPUT):
        _OUTPUT.file = file
        try:
            yield
        finally:
            _OUTPUT.file = None


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Keep mmengine from telling, at every reading of a config, which variables of the environment it names."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
