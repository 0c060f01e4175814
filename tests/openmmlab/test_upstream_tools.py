"""mmdet's and mmseg's own test.py, from the wheels, unmodified, with our config lines added to the demo configs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
from aihwkit_nabn.data.shapes import write_shapes
from aihwkit_nabn.evaluation import EvaluationResult

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

pytestmark = pytest.mark.slow  # starts processes

IMPORTS = "custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])\n"

HOOK = """
custom_hooks = [dict(type='AnalogHook', rpu_config=dict(type='PCMPreset'), seed=1, t_inference='1d',
                     calibration=dict(method='paired', max_samples=8), out_file='chip.pth')]
"""
LOOP = """
test_cfg = dict(type='AnalogTestLoop', rpu_config=dict(type='GaussianWeightNoisePreset', sigma=0.1),
                methods=['none', 'paired'], chips=2, max_samples=8)
"""


def upstream(package: str, script: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / ".mim" / "tools" / script


def run_tool(package: str, config: Path, checkpoint: Path, work_dir: Path, data: Path) -> str:
    command = [sys.executable, upstream(package, "test.py"), config, checkpoint, "--work-dir", work_dir]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NABN_DATA": str(data)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "shapes", n_train=16, n_val=8)
    return folder


CASES = [("shapes_detector", "mmdet", "coco/bbox_mAP"), ("shapes_segmenter", "mmseg", "mIoU")]


def config_with(lines: str, name: str, folder: Path) -> Path:
    path = folder / f"{name}.py"
    path.write_text(f"_base_ = [{str(demo_config_path(name))!r}]\n{IMPORTS}{lines}")
    return path


@pytest.mark.parametrize(("name", "package", "metric"), CASES)
def test_with_the_hook_and_again_from_the_chip_it_wrote(name, package, metric, tmp_path, data):
    config = config_with(HOOK, name, tmp_path)
    first = run_tool(package, config, demo_checkpoint_path(name), tmp_path, data)
    assert "AnalogHook: pcm, chip 1, 86400 s" in first and "calibrated with 'paired': 8 images" in first
    assert metric in first
    if package == "mmdet":
        second = run_tool(package, config, tmp_path / "chip.pth", tmp_path / "again", data)
        assert "own chip and calibration are used" in second and "calibrated with" not in second


@pytest.mark.parametrize(("name", "package", "metric"), CASES)
def test_with_the_loop(name, package, metric, tmp_path, data):
    printed = run_tool(package, config_with(LOOP, name, tmp_path), demo_checkpoint_path(name), tmp_path, data)
    assert "uncalibrated" in printed and "paired" in printed
    (path,) = tmp_path.glob("*/analog/results.json")
    result = EvaluationResult.from_json(path)
    assert result.metrics[0] == metric and len(result.records) == 4
    means = {cell.record.method: cell.estimate.mean for cell in result.cells()}
    assert means["uncalibrated"] < means["paired"] < result.digital[metric]
    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    assert f"gaussian:sigma=0.1/paired/{metric}" in json.loads(scalars.read_text().splitlines()[0])
