"""The test of any mmdetection or mmsegmentation config, put together as the upstream ``test.py`` does it."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.config import register_modules, scope_of
from aihwkit_nabn.openmmlab.missing_packages import explained

if TYPE_CHECKING:
    from mmengine.config import Config


def prepare(
    config: Config, checkpoint: str, *, work_dir: str | None = None, launcher: str = "none", workers: int | None = None
) -> Config:
    """Return a copy of the config with checkpoint, work folder, launcher and a plain test loop.

    Args:
        config: From `load_config`.
        checkpoint: File with the trained weights.
        work_dir: Folder of the run's logs; None: the config's, or ``work_dirs/CONFIG``.
        launcher: How the processes of a distributed run were started: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        workers: Processes that read images; None: as the config has it.

    Raises:
        NabnError: the checkpoint does not exist, or the config tests nothing.
        MissingDependencyError: the config's package is not installed.
    """
    if "://" not in checkpoint and not Path(checkpoint).is_file():
        raise NabnError(f"checkpoint {checkpoint!r} does not exist")
    scope_of(config)
    for field in ("model", "test_dataloader", "test_evaluator"):
        if not config.get(field):
            raise NabnError(f"config {config.filename!r} has no {field}; a test needs one")
    config = config.copy()
    config.load_from = checkpoint
    config.launcher = launcher
    config.work_dir = work_dir or config.get("work_dir") or str(Path("work_dirs") / Path(str(config.filename)).stem)
    config.test_cfg = {"type": "TestLoop", "fp16": bool((config.get("test_cfg") or {}).get("fp16", False))}
    if workers is not None:
        for field in ("train_dataloader", "test_dataloader"):
            if config.get(field):
                config[field].num_workers = workers
                if workers == 0:
                    config[field].persistent_workers = False
    return config


def build_loop(config: Config, *, take: str | None = None) -> Any:
    """Return the test loop of a config that is ready to measure: model built, weights loaded, nothing run.

    The config comes from `prepare`; `take` is that of `AnalogTestLoop`.

    Raises:
        NabnError: something of the config cannot be built.
        MissingDependencyError: a package that it names is not installed.
    """
    register_modules(scope_of(config))
    os.environ.setdefault("LOCAL_RANK", "0")
    _join_processes_without_gpu(config)
    import aihwkit_nabn.openmmlab  # noqa: F401  # registers the hooks that a config may have
    from aihwkit_nabn.openmmlab.checkpoints import FitCheckpoint

    with _building(config):
        runner = _build_runner(config)
        loop = runner.test_loop  # builds it
    runner.register_hook(FitCheckpoint(take))
    runner.call_hook("before_run")  # as the runner's own test does
    runner.load_or_resume()
    return loop


def data_setup(config: Config) -> dict[str, str]:
    """Return what tells model, data and metrics of configs apart; how many processes read the images is none of it."""
    parts = {"network": "model", **{name: name for name in ("train_dataloader", "test_dataloader", "test_evaluator")}}
    return {name: _digest(config.get(part)) for name, part in parts.items()}


def _digest(settings: Any) -> str:
    processes = ("num_workers", "persistent_workers")
    plain = {k: v for k, v in settings.items() if k not in processes} if isinstance(settings, Mapping) else settings
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_main_process(found: Any) -> Any:
    """Return the first process's object in all processes of a distributed run."""
    from mmengine.dist import broadcast_object_list

    held = [found]
    broadcast_object_list(held)
    return held[0]


def _join_processes_without_gpu(config: Config) -> None:
    """Join a run that torchrun started on a machine without GPU.

    mmengine would select a GPU per process before anything else; it leaves a process group alone that exists already.

    Raises:
        NabnError: torchrun did not start this process.
    """
    if config.launcher != "pytorch" or torch.cuda.is_available() or dist.is_initialized():
        return
    if "RANK" not in os.environ:
        raise NabnError("launcher 'pytorch' needs torchrun, which did not start this process: RANK is not set")
    dist.init_process_group("gloo")
    atexit.register(_leave_process_group)
    config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}


def _leave_process_group() -> None:
    """Leave while the interpreter is whole: gloo's threads can abort a process that is being torn down."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _build_runner(config: Config) -> Any:
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

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
