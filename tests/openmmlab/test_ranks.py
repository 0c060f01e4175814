"""`nabn test --launcher pytorch`: several processes share the images and measure what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aihwkit_nabn.data.demo_configs import demo_checkpoint_path, demo_config_path
from aihwkit_nabn.data.shapes import write_shapes
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.workloads import LoadSettings, load_workload

pytest.importorskip("mmseg")

pytestmark = pytest.mark.slow  # starts processes

NAME = "shapes_segmenter"


def measure(start: list[str], out: Path, data: Path, more: list[str]) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", *start, "aihwkit_nabn.cli", "test", str(demo_config_path(NAME))]
    command += [str(demo_checkpoint_path(NAME)), "--noise", "gaussian:sigma=0.1", "--methods", "none,paired"]
    command += ["--chips", "1", "--max-samples", "8", "--batch-size", "4", "--out", str(out), *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NABN_DATA": str(data)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Written to") == 1
    content = json.loads((out / "results.json").read_text())
    return {record["method"]: record["metrics"] for record in content["records"]}


def test_several_processes_measure_what_one_does(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", n_train=12, n_val=7)
    one = measure([], tmp_path / "one", tmp_path, [])
    assert one["uncalibrated"]["mIoU"] != one["paired"]["mIoU"]
    for n in (2, 3):
        torchrun = ["torch.distributed.run", "--nproc-per-node", str(n), "-m"]
        # Without a GPU mmengine's own start of the processes fails; with several it would take them, one process each.
        several = measure(torchrun, tmp_path / str(n), tmp_path, ["--launcher", "pytorch"])
        assert set(several) == set(one) == {"uncalibrated", "paired"}
        for method, metrics in one.items():
            assert several[method] == pytest.approx(metrics, abs=0.05)


def test_launcher_without_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    settings = LoadSettings(launcher="pytorch")
    with pytest.raises(NabnError, match="RANK is not set"):
        load_workload(str(demo_config_path(NAME)), settings, checkpoint=str(demo_checkpoint_path(NAME)))
