"""The demo's detector and segmenter: small OpenMMLab models on drawn shapes, measured by mmengine's own runner."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import missing_extra

if TYPE_CHECKING:
    from rich.console import Console

TITLES = {
    "shapes_detector": "a detector (mmdetection's RetinaNet, BatchNorm everywhere)",
    "shapes_segmenter": "a segmenter (mmsegmentation's FCN)",
}
NOISES = ("gaussian:sigma=0.05", "gaussian:sigma=0.1", "pcm")
METHODS = ("none", "population", "paired", "auto")
CALIBRATION_IMAGES = 64
CALIBRATION_BATCH = 16


def is_available() -> bool:
    """Return whether OpenMMLab's packages are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("mmengine", "mmcv", "mmdet", "mmseg"))


def install_line() -> str:
    """Return what to run where they are not."""
    return str(missing_extra("OpenMMLab (mmdetection, mmsegmentation)", "openmmlab"))


def shapes_demo(console: Console, out: Path, *, chips: int, seed: int, quick: bool) -> None:
    """Draw the shapes, measure both models on chips, print a table each and write their files under `out`.

    Args:
        console: Where to print.
        out: Gets a folder for the data and one per model.
        chips: Chips per noise setting.
        seed: Of the first chip.
        quick: One noise setting instead of three.
    """
    from aihwkit_nabn.commands._evaluation import show_result
    from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
    from aihwkit_nabn.data.shapes import write_shapes
    from aihwkit_nabn.openmmlab.config import load_config
    from aihwkit_nabn.openmmlab.run import TestRun, run_test

    write_shapes(out / "data" / "shapes")
    for name, title in TITLES.items():
        console.print(
            f"\nThe same for {title} on drawn shapes: {chips} chips for each kind of noise, "
            f"{CALIBRATION_IMAGES} calibration images.",
            highlight=False,
        )
        with _quiet(), _environment("NABN_DATA", str((out / "data").resolve())):
            config = load_config(demo_config_path(name), {"log_level": "ERROR"})
        run = TestRun(
            checkpoint=str(demo_checkpoint_path(name)),
            noises=NOISES[1:2] if quick else NOISES,
            times=("1y",),
            methods=METHODS,
            chips=chips,
            seed=seed,
            max_samples=CALIBRATION_IMAGES,
            batch_size=CALIBRATION_BATCH,
            work_dir=str(out / name / "logs"),
        )
        with _quiet():
            result = run_test(config, run)
        show_result(console, result, out / name)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Keep what the evaluators print for every chip out of the demo; their numbers are in its files."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mmsegmentation's, about defaults of losses that nothing here uses
            yield printed
    except BaseException:
        print(printed.getvalue())
        raise
