from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from aihwkit_nabn import cli
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands import _shapes_demo
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands.demo import demo_scenarios


def test_scenarios_cover_the_three_kinds_of_noise() -> None:
    full, quick = demo_scenarios(), demo_scenarios(quick=True)
    assert {scenario.name for scenario in quick} < {scenario.name for scenario in full}
    assert len({scenario.group for scenario in full}) == 3
    assert [s.t_inference for s in full if s.group == "phase-change memory"] == [86_400.0, 31_557_600.0]


def test_demo_shows_every_method_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shapes_demo, "is_available", lambda: False)  # the second part has tests of its own
    threads = torch.get_num_threads()
    assert run(cli.app, ["demo", "--quick", "--chips", "2", "--out", str(tmp_path / "demo")]) == 0
    assert torch.get_num_threads() == threads
    text = capsys.readouterr().out
    assert "pip install 'aihwkit-nabn[openmmlab]'" in text
    assert "unlabelled images" in text and "nabn test torchvision:" in text
    assert all(name in text for name in ["digital", "uncalibrated", *CALIBRATION_METHODS.names()])
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "accuracy.png",
        "results.json",
        "table.csv",
        "table.md",
    ]
    content = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert content["digital"]["accuracy"] >= 98.0
    scores: dict[str, list[float]] = {}
    for record in content["records"]:
        if record["scenario"].startswith("additive"):
            scores.setdefault(record["method"], []).append(record["metrics"]["accuracy"])
    # The noise costs twenty points or more on these chips, and paired brings nearly all of it back.
    assert max(scores["uncalibrated"]) < 80.0 and min(scores["paired"]) > 94.0


def test_out_that_is_a_file_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(cli.app, ["demo", "--out", str(tmp_path / "file")]) == 2
    assert "out must be a folder" in capsys.readouterr().err
