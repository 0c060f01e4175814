from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.simulator import parse_preset


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (None, "none"),
        ("population", "BatchNorm statistics of 1 layer"),
        ("paired", "output scale and offset of 2 layers"),
        ("common_mode", "output scale and offset of 2 layers; common-mode gain of "),
        ("low_rank", "output scale and offset of 2 layers; low-rank correction of "),
    ],
)
def test_a_chip_files_calibration_is_told(
    method: str | None,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64)).eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(model, parse_preset("pcm")), seed=0)
    if method is not None:
        nabn.calibrate(chip, [torch.rand(256, 64)], method=method, reference=model)
    assert run(cli.app, ["chip", str(nabn.save_chip(chip, tmp_path / "chip"))]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "calibration" in line)
    assert line.split("calibration")[1].strip().startswith(expected)
