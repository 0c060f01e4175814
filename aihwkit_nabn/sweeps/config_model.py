"""Measuring a config of mmdetection or mmsegmentation: the same run as `nabn test`, for one chip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import NabnError, missing_extra
from aihwkit_nabn.evaluation.methods import AUGMENTED
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.sweeps.jobs import Job, Task, digital_record
from aihwkit_nabn.sweeps.methods import MethodEntry
from aihwkit_nabn.sweeps.models import ModelEntry
from aihwkit_nabn.sweeps.spec import SweepSpec

if TYPE_CHECKING:
    from mmengine.config import Config

    from aihwkit_nabn.sweeps.classifier import Emit


def load_model_config(entry: ModelEntry, jpeg: int | None = None) -> Config:
    """Return the config of a model's entry, its images compressed if `jpeg` is a quality.

    Raises:
        NabnError: there is no such config, an option does not fit, or the checkpoint does not exist.
        MissingDependencyError: OpenMMLab's packages are not installed.
    """
    import importlib.util

    if importlib.util.find_spec("mmengine") is None:
        raise missing_extra("mmengine", "openmmlab")
    from aihwkit_nabn.openmmlab.config import load_config, parse_cfg_options
    from aihwkit_nabn.openmmlab.jpeg import compress_inputs
    from aihwkit_nabn.openmmlab.output import warnings_only

    options = dict(entry.options)
    if "://" not in options["checkpoint"] and not Path(options["checkpoint"]).is_file():
        raise NabnError(f"checkpoint {options['checkpoint']!r} of {entry.name} does not exist")
    with warnings_only():
        config = load_config(entry.model, parse_cfg_options(options.get("cfg_options", [])))
    return config if jpeg is None else compress_inputs(config, jpeg)


def measure_config(
    spec: SweepSpec, entry: ModelEntry, task: Task, emit: Emit, *, launcher: str, work_dir: str | None
) -> None:
    """Measure a task's jobs with mmengine's runner: one run for each number of calibration images."""
    from aihwkit_nabn.openmmlab.output import output_in
    from aihwkit_nabn.openmmlab.run import TestRun, run_test

    config = load_model_config(entry, task.jpeg)
    methods = {method.label: method for method in spec.methods}
    options = dict(entry.options)
    sizes = sorted({job.samples for job in task.jobs if job.samples is not None}) or [spec.samples[0]]
    for size in sizes:
        # Methods without images go with the first run.
        jobs = [job for job in task.jobs if job.samples == size or (job.samples is None and size == sizes[0])]
        folder = Path(work_dir or "work_dirs") / re.sub(r"[^\w.=-]+", "_", f"{task.key} samples {size}")
        run = TestRun(
            checkpoint=options["checkpoint"],
            take=options.get("take"),
            noises=[task.noise],
            times=[task.t_inference],
            methods=[_as_config(methods[job.method], job) for job in jobs],
            chips=1,
            seed=task.chip_seed,
            calibration_seed=spec.seed,
            max_samples=size,
            exclude=entry.exclude,
            work_dir=str(folder),
            launcher=launcher,
        )
        with output_in(folder):
            result = run_test(config, run)
        emit(digital_record(entry.name, task.jpeg, result.digital))
        wanted = {job.key: job for job in jobs}
        for record in result.records:
            if record.method in wanted:
                emit(wanted[record.method].named(record))


def _as_config(method: MethodEntry, job: Job) -> dict[str, Any]:
    entry: dict[str, Any] = {"method": method.method, "label": job.key}
    if method.method != UNCALIBRATED and method.images is not None:
        entry["pipeline"] = "train" if method.images == AUGMENTED else "test"
    if method.clean_reference:
        entry["reference_skips"] = "CompressJPEG"
    return entry | dict(method.options)
