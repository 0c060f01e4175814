"""Running a study: what is left goes to workers, what comes back into the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.studies._base import EXECUTORS, Event, Note, Study, Worker
from aihwkit_nabn.studies._local import WorkersDied

_MOST_DEATHS = 2  # of workers, one after the other, without a record between


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a study is.

    Attributes:
        done: Records that are there.
        total: Records that will be there; None: not known yet.
        before: Records that were there when this run began.
        latest: The latest record.
    """

    done: int
    total: int | None
    before: int
    latest: Record | None = None


def run_study(
    study: Study,
    log: RecordLog,
    *,
    workers: int | None = None,
    executor: str = "local",
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[Note], None] | None = None,
) -> RecordLog:
    """Do what is left of a study, keeping each record in the log as soon as it is there.

    Records are equal in everything but the times they took, whatever the executor, the number of workers, the order,
    and how often the study was interrupted: every measurement has seeds of its own, and each worker computes in one
    thread.

    Args:
        study: What is to be measured.
        log: What was measured; its records are not measured again.
        workers: Processes, >= 1; None: in this process, with all of torch's threads.
        executor: Where the processes are: ``"local"`` or ``"ray"``.
        on_progress: Called at the beginning and with every record.
        on_note: Called with what else comes.

    Returns:
        The log.

    Raises:
        NabnError: something about a workload or its data that the user can mend, or processes that keep dying.
    """
    if workers is not None:
        check_count("workers", workers, minimum=1)
    run = EXECUTORS.get(executor)
    before, deaths = len(log.records), 0

    def tell(latest: Record | None) -> None:
        if on_progress is not None:
            total = study.total(log.records)
            on_progress(Progress(done=len(log.records), total=total, before=before, latest=latest))

    tell(None)
    while jobs := study.jobs(log.records):
        count = len(log.records)
        try:
            events = _in_this_process(study, jobs) if workers is None else run(study, jobs, min(workers, len(jobs)))
            with closing(events):  # type: ignore[type-var]  # executors are generators
                for event in events:
                    if not isinstance(event, Record):
                        log.note(event.name, event.value)
                        if on_note is not None:
                            on_note(event)
                    elif log.add(event):
                        tell(event)
        except WorkersDied:
            deaths = deaths + 1 if len(log.records) == count else 0
            if deaths >= _MOST_DEATHS:
                raise NabnError(
                    f"a worker process ended {deaths} times before it had measured anything; is there enough memory? "
                    "Fewer --jobs need less. Records are kept; the same command goes on"
                ) from None
        else:
            left = len(study.jobs(log.records))  # what comes next, where jobs depend on what others have found
            if left and len(log.records) == count:
                raise RuntimeError(f"{left} jobs of {type(study).__name__} left no record that says they are done")
    return log


def _in_this_process(study: Study, jobs: list[Any]) -> Iterator[Event]:
    worker = Worker(study)
    for job in jobs:
        yield from worker.events(job)
