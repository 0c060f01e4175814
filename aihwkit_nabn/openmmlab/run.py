"""A test run of any mmdetection or mmsegmentation config, put together as the upstream ``test.py`` does it."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from aihwkit_nabn.calibration.method import DEFAULT_METHOD
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.config import register_modules, scope_of
from aihwkit_nabn.openmmlab.missing_packages import explained

if TYPE_CHECKING:
    from mmengine.config import Config

    from aihwkit_nabn.evaluation import EvaluationResult

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


@dataclass(frozen=True, kw_only=True)
class TestRun:
    """What to measure.

    Attributes:
        checkpoint: File with the trained weights.
        noises: Presets as `aihwkit_nabn.simulator.parse_preset` takes them.
        times: Times after programming, as `aihwkit_nabn.chip.parse_time` takes them.
        methods: Names of calibration methods, ``"none"`` for the chip as programmed, or what else the loop takes.
        chips: Chips per noise setting.
        seed: Seed of the first chip, and of the choice of calibration images.
        calibration_seed: Seed of that choice, where it is another one.
        max_samples: Number of calibration images.
        batch_size: Images per calibration batch; None: as the config's train loader has it.
        exclude: Names of modules that stay digital.
        workers: Processes that read images; None: as the config has it.
        work_dir: Folder of the run's logs.
        per_class: Report every class too, see `AnalogTestLoop`.
        examples: Number of test images to draw, see `AnalogTestLoop`.
        take: Which of several weights, see `AnalogTestLoop`.
        records: File that keeps the measurements, see `AnalogTestLoop`.
        resume: Go on with what is in it.
        launcher: How the processes of a distributed run were started, one of `LAUNCHERS`.
    """

    __test__ = False  # no test case, whatever pytest makes of the name

    checkpoint: str
    noises: Sequence[str]
    times: Sequence[str | float] = ("1d",)
    methods: Sequence[str | dict[str, Any]] = ("none", "population", DEFAULT_METHOD)
    chips: int = 5
    seed: int = 0
    calibration_seed: int | None = None
    max_samples: int = 256
    batch_size: int | None = None
    exclude: Sequence[str] = ()
    workers: int | None = None
    work_dir: str | None = None
    launcher: str = "none"
    per_class: bool = False
    examples: int = 0
    take: str | None = None
    records: str | None = None
    resume: bool = False


def prepare(config: Config, run: TestRun) -> Config:
    """Return a copy of the config that tests on chips: checkpoint, work folder, launcher and `AnalogTestLoop` are set.

    Raises:
        NabnError: the checkpoint does not exist, the config tests nothing, or an argument has a value that is not
            allowed.
        MissingDependencyError: the config's package is not installed.
    """
    if "://" not in run.checkpoint and not Path(run.checkpoint).is_file():
        raise NabnError(f"checkpoint {run.checkpoint!r} does not exist")
    if run.launcher not in LAUNCHERS:
        raise NabnError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {run.launcher!r}")
    scope_of(config)
    for field in ("model", "test_dataloader", "test_evaluator"):
        if not config.get(field):
            raise NabnError(f"config {config.filename!r} has no {field}; a test needs one")
    config = config.copy()
    config.load_from = run.checkpoint
    config.launcher = run.launcher
    config.work_dir = run.work_dir or config.get("work_dir") or str(Path("work_dirs") / Path(str(config.filename)).stem)
    config.test_cfg = {
        "type": "AnalogTestLoop",
        "rpu_config": list(run.noises),
        "t_inference": list(run.times),
        "methods": list(run.methods),
        "chips": run.chips,
        "seed": run.seed,
        "calibration_seed": run.calibration_seed,
        "max_samples": run.max_samples,
        "calibration_batch_size": run.batch_size,
        "exclude": list(run.exclude),
        "per_class": run.per_class,
        "examples": run.examples,
        "take": run.take,
        "records": run.records,
        "resume": run.resume,
    }
    if run.workers is not None:
        for field in ("train_dataloader", "test_dataloader"):
            if config.get(field):
                config[field].num_workers = run.workers
                if run.workers == 0:
                    config[field].persistent_workers = False
    return config


def run_test(config: Config, run: TestRun) -> EvaluationResult:
    """Measure a config's model on chips, with mmengine's own runner.

    Args:
        config: From `load_config`; not changed.
        run: What to measure.

    Returns:
        What the loop measured; it has printed its table and written its files by then.

    Raises:
        NabnError: as for `prepare`, or what the loop says.
    """
    runner = _runner(config, run)
    with _building(config):
        _ = runner.test_loop  # builds it
    runner.test()
    result: EvaluationResult = runner.test_loop.result
    drawn = runner.test_loop.example_folder
    if drawn is not None and run.work_dir is not None:
        shutil.copytree(drawn, Path(run.work_dir) / drawn.name, dirs_exist_ok=True)
    return result


def build_loop(config: Config, run: TestRun) -> Any:
    """Return the `AnalogTestLoop` of a run that is ready to measure: model built, weights loaded, nothing run.

    Args:
        config: As for `run_test`.
        run: As for `run_test`.

    Raises:
        NabnError: as for `prepare`.
    """
    runner = _runner(config, run)
    with _building(config):
        loop = runner.test_loop  # builds it
    runner.call_hook("before_run")  # as the runner's own test does
    runner.load_or_resume()
    return loop


def _runner(config: Config, run: TestRun) -> Any:
    config = prepare(config, run)
    register_modules(scope_of(config))
    os.environ.setdefault("LOCAL_RANK", "0")
    _join_processes_without_gpu(config)
    import aihwkit_nabn.openmmlab  # noqa: F401  # registers the loop

    return _build_runner(config)


def _join_processes_without_gpu(config: Config) -> None:
    """Join a run that torchrun started on a machine without GPU.

    mmengine would select a GPU per process before anything else; it leaves a process group alone that exists already.

    Raises:
        NabnError: torchrun did not start this process.
    """
    if config.launcher != "pytorch" or torch.cuda.is_available() or dist.is_initialized():
        return
    if "RANK" not in os.environ:
        raise NabnError("launcher 'pytorch' is for processes that torchrun starts, and this is none: RANK is not set")
    dist.init_process_group("gloo")
    atexit.register(_leave_process_group)
    config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}


def _leave_process_group() -> None:
    """Leave while the interpreter is whole: gloo's threads can abort a process that is being torn down."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Return whether this process is the one that prints and writes."""
    from mmengine.dist import is_main_process as is_main

    return bool(is_main())


def _build_runner(config: Config) -> Any:
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    with _building(config):
        return RUNNERS.build(config) if "runner_type" in config else Runner.from_cfg(config)


@contextlib.contextmanager
def _building(config: Config) -> Iterator[None]:
    """Say in one line what of a config cannot be built: an unknown type, a value that its class refuses."""
    try:
        with explained(f"config {config.filename!r}"):
            yield
    except NabnError:
        raise
    except (AssertionError, ImportError, LookupError, TypeError, ValueError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise NabnError(f"config {config.filename!r} cannot be run: {str(reason) or type(error).__name__}") from error
