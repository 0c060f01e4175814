"""A sweep whose measurements are each made by several processes together, which a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.results.log import finished_keys
from aihwkit_nabn.studies._base import Worker
from aihwkit_nabn.studies.grid.study import RECORDS, GridStudy
from aihwkit_nabn.workloads import is_config

_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def run_launched(study: GridStudy, out: Path, on_record: Callable[[Record], None]) -> RecordLog | None:
    """Run what is left of a sweep over configs, every process of the launcher taking part in each measurement.

    Args:
        study: The sweep, with its launcher.
        out: Folder of the sweep.
        on_record: Called with each record, in the first process.

    Returns:
        The log in the first process, None in the others.

    Raises:
        NabnError: a model is no config, or what `run_study` raises.
    """
    for model in study.spec.models:
        if not is_config(model.model):
            raise NabnError(f"--launcher is for configs of mmdetection and mmsegmentation, which {model.name!r} is not")
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), None)
    if rank is None:
        raise NabnError(
            f"launcher {study.launcher!r} is for processes that it has started, and this is none: no rank is set"
        )
    worker = Worker(study)
    if int(rank):
        # Nothing can be added before this process has joined the first measurement.
        for job in study.jobs(dict.fromkeys(finished_keys(out / RECORDS))):  # type: ignore[arg-type]  # keys will do
            for _ in worker.events(job):
                pass
        return None
    with study.open_log(out) as log:
        for job in study.jobs(log.records):
            for event in worker.events(job):
                if not isinstance(event, Record):
                    log.note(event.name, event.value)
                elif log.add(event):
                    on_record(event)
    return log
