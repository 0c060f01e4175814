"""What the commands do with a target that is a config of mmdetection or mmsegmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import NabnError, missing_extra

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.console import Console
    from torch import nn

    from aihwkit_nabn.openmmlab.run import TestRun

# Options of `nabn test` that say what a config says itself.
_IN_THE_CONFIG = {
    "data": "test_dataloader.dataset.data_root=FOLDER and train_dataloader.dataset.data_root=FOLDER",
    "limit": "test_dataloader.dataset.indices=N",
    "image-size": "the pipelines' own sizes",
}


def is_config(target: str) -> bool:
    """Return whether a target means a config file rather than ``KIND:NAME``."""
    return target.endswith(".py") or "::" in target


def read_config(target: str, cfg_options: Sequence[str]) -> Config:
    """Return the config of a target with ``KEY=VALUE`` texts merged into it.

    Raises:
        NabnError: there is no such config, or an option does not fit.
        MissingDependencyError: OpenMMLab's packages are not installed.
    """
    import importlib.util

    if importlib.util.find_spec("mmengine") is None:
        raise missing_extra("mmengine", "openmmlab")
    from aihwkit_nabn.openmmlab.config import load_config, parse_cfg_options

    return load_config(target, parse_cfg_options(cfg_options))


def refuse_options(given: Mapping[str, Any]) -> None:
    """Refuse options that only other targets have.

    Raises:
        NabnError: one of them is not None.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name == "device":
            raise NabnError("--device is not for configs: mmengine takes the first GPU it sees (CUDA_VISIBLE_DEVICES)")
        raise NabnError(
            f"--{name} is not for configs, which say it themselves; use --cfg-options {_IN_THE_CONFIG[name]}"
        )


def cfg_option_items(options: Sequence[str] | None, more: Sequence[str] | None) -> list[str]:
    """Return all ``KEY=VALUE`` texts; upstream takes several behind one ``--cfg-options``.

    Raises:
        NabnError: there are further arguments, but no ``--cfg-options`` that they could belong to.
    """
    if more and not options:
        raise NabnError(f"unexpected argument {more[0]!r}; KEY=VALUE pairs come after --cfg-options")
    return [*(options or ()), *(more or ())]


def measured_by_config(config: Config, run: TestRun, *, limit: int | None) -> dict[str, Any]:
    """Return ``model``, ``eval_fn`` and what else `evaluate` needs, from the loop that `nabn test` runs.

    What mmengine and the metrics print goes into ``output.txt`` of the run's work folder.

    Args:
        config: From `read_config`; changed where there is a limit.
        run: What to measure, with a work folder.
        limit: Number of test images; None: all.

    Raises:
        NabnError: as for `aihwkit_nabn.openmmlab.run.prepare`.
    """
    from aihwkit_nabn.openmmlab.output import output_in
    from aihwkit_nabn.openmmlab.run import build_loop

    logs = Path(str(run.work_dir))
    if limit is not None and config.get("test_dataloader"):  # without one `prepare` has its own word
        config.test_dataloader.dataset.indices = limit
    with output_in(logs):
        loop = build_loop(config, run)
        model = loop.start()
    arguments = loop.arguments()
    evaluate = arguments["eval_fn"]

    def eval_fn(candidate: nn.Module) -> dict[str, float]:
        with output_in(logs):
            return dict(evaluate(candidate))

    taken = ("calibration_batches", "forward_fn", "reference_forward_fn")
    return {"model": model, "eval_fn": eval_fn, **{name: arguments[name] for name in taken}}


def test_config(console: Console, config: Config, run: TestRun) -> None:
    """Run a config's test on chips and write the result to the run's work folder."""
    from aihwkit_nabn.openmmlab.run import is_main_process, run_test

    result = run_test(config, run)
    if run.work_dir is not None and is_main_process():
        folder = Path(run.work_dir)
        result.report(folder)
        files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
        console.print(f"Written to {folder}/: {files}", style="bold", highlight=False, soft_wrap=True, markup=False)
