"""A sweep whose measurements are each made by several processes together, which a launcher has started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.results.log import finished_keys
from aihwkit_nabn.sweeps.jobs import tasks_of
from aihwkit_nabn.sweeps.run import RECORDS, check_models, open_log
from aihwkit_nabn.sweeps.spec import parse_spec
from aihwkit_nabn.sweeps.worker import Worker

_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def run_launched(
    content: Any, out: Path, launcher: str, on_record: Callable[[Record], None] | None = None
) -> RecordLog | None:
    """Run what is left of a sweep over configs, every process of the launcher taking part in each measurement.

    Args:
        content: The sweep as its file has it.
        out: Folder of the sweep.
        launcher: ``pytorch``, ``slurm`` or ``mpi``.
        on_record: Called with each record, in the first process.

    Returns:
        The store in the first process, None in the others.

    Raises:
        NabnError: a model is no config, or what `run_sweep` raises.
    """
    spec = parse_spec(content)
    for model in spec.models:
        if not model.is_config:
            raise NabnError(f"--launcher is for configs of mmdetection and mmsegmentation, which {model.name!r} is not")
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), None)
    if rank is None:
        raise NabnError(f"launcher {launcher!r} is for processes that it has started, and this is none: no rank is set")
    check_models(spec)
    worker = Worker(content, launcher=launcher, work_dir=str(out / "logs"))
    if int(rank):
        # Nothing can be added before this process has joined the first measurement.
        for task in tasks_of(spec, finished_keys(out / RECORDS)):
            worker.measure(task, lambda record: None)
        return None
    with open_log(spec, out) as store:

        def emit(record: Record) -> None:
            if store.add(record) and on_record is not None:
                on_record(record)

        for task in tasks_of(spec, store.records):
            worker.measure(task, emit)
    return store
