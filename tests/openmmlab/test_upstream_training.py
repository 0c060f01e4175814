"""mmdet's and mmseg's own train.py, unmodified, with the hook for hardware-aware training; then their test.py."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
from aihwkit_nabn.data.shapes import write_shapes

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
checkpoint = pytest.importorskip("mmengine.runner.checkpoint")

pytestmark = pytest.mark.slow  # starts processes

LINES = """
custom_imports = dict(imports=['aihwkit_nabn.openmmlab'])
custom_hooks = [dict(type='HardwareAwareTrainingHook', rpu_config=dict(type='GaussianWeightNoisePreset', sigma=0.06))]
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""


@pytest.mark.parametrize(("name", "package"), [("shapes_detector", "mmdet"), ("shapes_segmenter", "mmseg")])
def test_train_and_test_with_the_upstream_tools(name: str, package: str, tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", n_train=16, n_val=8)
    config = tmp_path / f"{name}.py"
    config.write_text(f"_base_ = [{str(demo_config_path(name))!r}]\n{LINES}")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    tools = Path(spec.origin).parent / ".mim" / "tools"
    start = demo_checkpoint_path(name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NABN_DATA": str(tmp_path)}

    def run(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    out = tmp_path / "work"
    text = run(tools / "train.py", config, "--work-dir", out, "--cfg-options", f"load_from={start}")
    assert "so training at additive 0.06" in text and "% of" in text
    before = torch.load(start, weights_only=True)["state_dict"]
    after = torch.load(out / "epoch_1.pth", weights_only=False)["state_dict"]  # written just now, by us
    assert set(after) == set(before)
    changed = [key for key, value in before.items() if value.ndim > 1 and not torch.equal(value, after[key])]
    assert len(changed) == sum(value.ndim > 1 for value in before.values())
    # A config that knows nothing of this package tests it, where mmengine reads its own checkpoints on this torch.
    plain = demo_config_path(name)
    if not hasattr(checkpoint, "_safe_torch_load"):
        plain = tmp_path / "reads_checkpoints.py"
        plain.write_text(f"_base_ = [{str(demo_config_path(name))!r}]\n{LINES.splitlines()[1]}\n")
    tested = run(tools / "test.py", plain, out / "epoch_1.pth")
    assert "mAP" in tested or "mIoU" in tested
