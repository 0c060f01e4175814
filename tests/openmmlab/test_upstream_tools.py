"""mmdet's and mmseg's own test.py, from the wheels, unmodified, with our config lines added."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aihwkit_nabn.evaluation import EvaluationResult

HOOK = """
custom_hooks = [dict(type='AnalogHook', rpu_config=dict(type='PCMPreset'), seed=1, t_inference='1d',
                     calibration=dict(method='paired', max_samples=8), out_file='chip.pth')]
"""
LOOP = """
test_cfg = dict(type='AnalogTestLoop', rpu_config=dict(type='GaussianWeightNoisePreset', sigma=0.06),
                methods=['none', 'paired'], chips=2, max_samples=8)
"""


def upstream(package: str, script: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / ".mim" / "tools" / script


def run_tool(package: str, config: Path, checkpoint: Path, work_dir: Path, *more: str) -> str:
    command = [
        sys.executable, upstream(package, "test.py"), config, checkpoint, "--work-dir", work_dir, *more
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "package", "metric"), [("detector", "mmdet", "bbox_mAP"), ("segmentor", "mmseg", "mIoU")]
)
def test_with_the_hook_and_again_from_the_chip_it_wrote(request, name, package, metric, tmp_path):
    case = request.getfixturevalue(name)
    config = case.extended(HOOK, "hook")
    first = run_tool(package, config, case.checkpoint, tmp_path)
    assert "AnalogHook: pcm, chip 1, 86400 s" in first and "calibrated with 'paired': 8 images" in first
    assert metric in first
    if name == "detector":
        second = run_tool(package, config, tmp_path / "chip.pth", tmp_path / "again")
        assert "own chip and calibration are used" in second and "calibrated with" not in second


@pytest.mark.parametrize(
    ("name", "package", "metric"), [("detector", "mmdet", "coco/bbox_mAP"), ("segmentor", "mmseg", "mIoU")]
)
def test_with_the_loop(request, name, package, metric, tmp_path):
    case = request.getfixturevalue(name)
    printed = run_tool(package, case.extended(LOOP, "loop"), case.checkpoint, tmp_path)
    assert "uncalibrated" in printed and "paired" in printed
    (path,) = tmp_path.glob("*/analog/results.json")
    result = EvaluationResult.from_json(path)
    assert result.metrics[0] == metric and len(result.records) == 4
    (scalars,) = tmp_path.glob("*/vis_data/scalars.json")
    assert f"gaussian:sigma=0.06/paired/{metric}" in json.loads(scalars.read_text().splitlines()[0])
