"""What `nabn sweep` shows while it runs: a table that fills, and the time left."""

from __future__ import annotations

from statistics import fmean

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from aihwkit_nabn.progress import Meter
from aihwkit_nabn.results import Record
from aihwkit_nabn.studies import Progress as StudyProgress
from aihwkit_nabn.studies.grid import SweepSpec, all_measurements
from aihwkit_nabn.times import format_time

_MOST_ROWS = 16

Row = tuple[str, str]


class SweepView:
    """A live table on a terminal; elsewhere a line now and then, on the error stream.

    Attributes:
        done: Measurements that are there.
        total: Measurements that will be there.
    """

    def __init__(self, console: Console, spec: SweepSpec, *, shown: bool = True) -> None:
        self.console, self.spec = console, spec
        self.done, self.total = 0, 0
        self._rows: dict[Row, dict[str, list[float]]] = {}
        self._labels: list[str] = []
        for job in all_measurements(spec):
            self._rows.setdefault(_row(job.model, job.noise, job.t_inference), {})
            if job.method not in self._labels:
                self._labels.append(job.method)
        self._bar = Progress(
            TextColumn("measured"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._task = self._bar.add_task("", total=None)
        self._latest: Row | None = None
        self._live = Live(self._render(), console=console, refresh_per_second=4, transient=True)
        self._shows_table = shown and console.is_terminal
        self._meter = Meter(shown=shown and not console.is_terminal)

    def update(self, progress: StudyProgress) -> None:
        """Take in how far the sweep is."""
        self.done, self.total = progress.done, progress.total or 0
        if progress.latest is not None:
            self._take(progress.latest)
        self._bar.update(self._task, completed=progress.done, total=progress.total)
        self._meter.update(progress.done, progress.total, before=progress.before)
        if progress.latest is not None:
            self._meter.show(progress.latest.key)
        if self._shows_table:
            self._live.update(self._render())

    def __enter__(self) -> SweepView:
        if self._shows_table:
            self._live.start()
        self._meter.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._meter.__exit__()
        if self._shows_table:
            self._live.stop()

    def _take(self, record: Record) -> None:
        self._latest = _row(str(record.axis("model")), record.scenario, record.t_inference)
        values = self._rows.setdefault(self._latest, {}).setdefault(record.method, [])
        values.append(next(iter(record.metrics.values())))

    def _render(self) -> Group:
        table = Table(box=box.SIMPLE, title="means of what is measured so far", title_style="dim")
        table.add_column("model")
        table.add_column("noise")
        for label in self._labels:
            table.add_column(label, justify="right")
        for row in self._shown():
            values = self._rows[row]
            means = [f"{fmean(values[label]):.4g}" if label in values else "" for label in self._labels]
            table.add_row(*row, *means)
        if len(self._rows) > _MOST_ROWS:
            table.caption = f"{_MOST_ROWS} of {len(self._rows)} noise settings"
        return Group(table, self._bar)

    def _shown(self) -> list[Row]:
        """Return the rows around the latest one that fit on a screen."""
        rows = list(self._rows)
        end = max(_MOST_ROWS, (rows.index(self._latest) if self._latest else 0) + 1)
        return rows[end - _MOST_ROWS : end]


def _row(model: str, noise: str, seconds: float) -> Row:
    return model, f"{noise}, {format_time(seconds)}" if seconds else noise
