"""Running a sweep: what is left to do goes to the executor, what comes back into the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.evaluation.plan import has_input_ranges
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.results.provenance import versions
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.sweeps.classifier import Classifier
from aihwkit_nabn.sweeps.config_model import load_model_config
from aihwkit_nabn.sweeps.executors import EXECUTORS, TaskDone, WorkerSetup
from aihwkit_nabn.sweeps.jobs import Task, all_jobs, tasks_of
from aihwkit_nabn.sweeps.sets import chosen_images
from aihwkit_nabn.sweeps.spec import SweepSpec, parse_spec

RECORDS = "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a sweep is.

    Attributes:
        done: Records that are there.
        total: Records that will be there, those of digital models not counted.
        before: Records that were there when this run began.
        tasks_left: Chips still to be measured.
        latest: The latest record.
    """

    done: int
    total: int
    before: int
    tasks_left: int
    latest: Record | None = None


def run_sweep(
    content: Any,
    out: Path,
    *,
    workers: int = 1,
    executor: str = "local",
    on_progress: Callable[[Progress], None] | None = None,
) -> RecordLog:
    """Run what is left of a sweep and return its store, closed, with every record.

    Records are equal in everything but the times they took, whatever the executor, the number of workers, the order,
    and how often the sweep was interrupted: every measurement has seeds of its own, and each worker computes in one
    thread.

    Args:
        content: The sweep as its file has it.
        out: Folder of the sweep; ``records.jsonl`` in it is begun or gone on with.
        workers: Processes, >= 1.
        executor: Registered name.
        on_progress: Called at the beginning and with every record.

    Raises:
        NabnError: the sweep, the folder or a model's data has something the user can mend; found before the first
            measurement where it can be.
    """
    spec = parse_spec(content)
    check_count("workers", workers, minimum=1)
    run = EXECUTORS.get(executor)
    notes = check_models(spec)
    with open_log(spec, out) as store:
        for name, value in notes.items():
            store.note(name, value)
        tasks = tasks_of(spec, store.records)
        report = _Reporter(spec, store, tasks, on_progress)
        if tasks:
            setup = WorkerSetup(content=content, work_dir=str(out / "logs"), threads=1)
            events = run(setup, tasks, min(workers, len(tasks)))
            try:
                for event in events:
                    if isinstance(event, TaskDone):
                        report.task_done()
                    elif store.add(event):
                        report.record(event)
            finally:
                events.close()  # type: ignore[attr-defined]  # executors are generators
        _check_complete(spec, store)
    return store


class _Reporter:
    """Counts what is there and tells."""

    def __init__(
        self, spec: SweepSpec, store: RecordLog, tasks: list[Task], on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._wanted = {key for job in all_jobs(spec) for key in job.keys(spec)}
        self._store, self._tell, self._tasks_left = store, on_progress, len(tasks)
        self._done = self._before = sum(key in self._wanted for key in store.records)
        self._report(None)

    def task_done(self) -> None:
        self._tasks_left -= 1
        self._report(None)

    def record(self, record: Record) -> None:
        if record.key in self._wanted:
            self._done += 1
            self._report(record)

    def _report(self, latest: Record | None) -> None:
        if self._tell is not None:
            self._tell(
                Progress(
                    done=self._done,
                    total=len(self._wanted),
                    before=self._before,
                    tasks_left=self._tasks_left,
                    latest=latest,
                )
            )


def described(spec: SweepSpec) -> dict[str, Any]:
    """Return the sweep as plain values with the versions that its records depend on."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec), default=str))
    if not plain["imports"]:
        del plain["imports"]  # as stores had it before there were any
    return {**plain, "versions": versions("aihwkit", "torch", "numpy", "pillow")}


def open_log(spec: SweepSpec, out: Path) -> RecordLog:
    """Return the log in a sweep's folder, begun or gone on with.

    Raises:
        NabnError: as for `RecordLog`.
    """
    return RecordLog(out / RECORDS, described(spec), mend="use the same, or another --out")


def check_models(spec: SweepSpec) -> dict[str, Any]:
    """Load every model, look for its images and convert it, so that what is missing is known before the work.

    Returns:
        By ``conversion MODEL NOISE`` what is on tiles, as text, for classifiers.

    Raises:
        NabnError: something is missing, damaged or cannot be converted.
    """
    notes: dict[str, Any] = {}
    for entry in spec.models:
        if entry.is_config:
            for jpeg in spec.jpeg:
                load_model_config(entry, jpeg)
            continue
        classifier = Classifier(spec, entry)
        for calibration in spec.calibration:
            for chip in spec.chip_seeds:
                chosen_images(classifier.bench, calibration, max(spec.samples), chip, spec.seed)
        if spec.test_images is not None and spec.test_images > len(classifier.bench.test.labels):
            raise NabnError(
                f"test_images must be at most {len(classifier.bench.test.labels)} for {entry.name}, "
                f"got {spec.test_images}"
            )
        notes[f"model {entry.name}"] = {
            "test_images": len(classifier.test_numbers),
            "other_data": classifier.bench.other_name,
            "class": type(classifier.bench.model).__name__,
        }
        for noise in spec.noise:
            config = parse_preset(noise)
            analog = convert_to_noise_aware(classifier.bench.model, config, exclude=entry.exclude)
            notes[f"conversion {entry.name} {noise}"] = str(analog.conversion_report)
            if has_input_ranges(config):
                classifier.range_set(None)
    return notes


def _check_complete(spec: SweepSpec, store: RecordLog) -> None:
    missing = [key for job in all_jobs(spec) for key in job.keys(spec) if key not in store.records]
    if missing:
        raise RuntimeError(f"{len(missing)} records are missing at the end, the first: {missing[0]}")
