"""The demo's detector and segmenter: small OpenMMLab models on drawn shapes, measured by mmengine's own runner."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

    The quick demo has one noise setting instead of three.
    """
    from aihwkit_nabn.commands._evaluation import parse_scenarios, show_result
    from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
    from aihwkit_nabn.data.shapes import write_shapes
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, load_workload

    write_shapes(out / "data" / "shapes")
    methods = method_specs(METHODS)
    request = CalibrationRequest(n=CALIBRATION_IMAGES, seed=seed, batch_size=CALIBRATION_BATCH)
    for name, title in TITLES.items():
        console.print(
            f"\nThe same for {title} on drawn shapes: {chips} chips for each kind of noise, "
            f"{CALIBRATION_IMAGES} calibration images.",
            highlight=False,
        )
        with _environment("NABN_DATA", str((out / "data").resolve())):
            workload = load_workload(
                str(demo_config_path(name)),
                LoadSettings(seed=seed, work_dir=out / name / "logs"),
                checkpoint=str(demo_checkpoint_path(name)),
                cfg_options=["log_level=ERROR"],
            )
        scenarios = parse_scenarios(NOISES[1:2] if quick else NOISES, ["1y"])
        result = workload.evaluate(scenarios, methods, request, chips=chips)
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
