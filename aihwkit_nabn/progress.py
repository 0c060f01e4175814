"""Progress of a long run: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import sys
import threading
import time
from datetime import timedelta
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal."""


class Meter:
    """Shows on the error stream what is being measured, how much is done and the time left, inside a ``with`` block.

    A `total` of None is not known yet. Unless `shown`, nothing is; a `transient` bar leaves the terminal at the end.
    """

    def __init__(
        self, total: int | None = None, *, shown: bool = True, file: TextIO | None = None, transient: bool = False
    ) -> None:
        console = Console(file=file or sys.stderr)  # as it is now: it may be redirected later
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("", total=total)
        self._console = console
        self._writes_lines = shown and not console.is_terminal
        self._text, self._done, self._total = "", 0, total
        self._before = 0  # done by an earlier run
        self._began, self._said = time.monotonic(), False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_lines, name="progress", daemon=True)

    def show(self, text: str) -> None:
        """Say what is being measured."""
        self._text = text
        self._bar.update(self._task, description=text)

    def advance(self) -> None:
        """Count one step."""
        self.update(self._done + 1, self._total)

    def update(self, done: int, total: int | None, *, before: int | None = None) -> None:
        """Set how much is done, and how much of it an earlier run did; the time left does not count that."""
        self._done, self._total = done, total
        if before is not None:
            self._before = before
        self._bar.update(self._task, completed=done, total=total)

    def tell(self, console: Console, text: str) -> None:
        """Print a line of the run's output, above the bar if there is one."""
        where = console if self._bar.disable else self._bar.console
        where.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Meter:
        self._began = time.monotonic()
        self._bar.start()
        if self._writes_lines:
            self._thread.start()  # steps can take minutes each
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()
        if self._writes_lines:
            self._over.set()
            self._thread.join()
            if self._said:
                self._write_line()

    def _write_lines(self) -> None:
        while not self._over.wait(LINE_SECONDS):
            self._write_line()
            self._said = True

    def _write_line(self) -> None:
        elapsed = time.monotonic() - self._began
        parts = [f"{_clock(elapsed)} elapsed", f"{self._done}/{self._total or '?'} done"]
        made = self._done - self._before
        if made and self._total and self._done < self._total:
            parts.append(f"about {_clock(elapsed / made * (self._total - self._done))} left")
        text = ", ".join(parts) + (f": {self._text}" if self._text else "")
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
