from __future__ import annotations

import io

import pytest
from rich.console import Console

from aihwkit_nabn.commands import _shapes_demo
from aihwkit_nabn.evaluation import EvaluationResult


@pytest.mark.slow
def test_both_models_are_measured_and_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_shapes_demo, "CALIBRATION_IMAGES", 16)
    screen = io.StringIO()
    _shapes_demo.shapes_demo(Console(file=screen, width=120), tmp_path, chips=1, seed=0, quick=True)
    printed = screen.getvalue()
    for name, metric, least in (("shapes_detector", "coco/bbox_mAP", 0.7), ("shapes_segmenter", "mIoU", 80.0)):
        assert metric in printed
        result = EvaluationResult.from_json(tmp_path / name / "results.json")
        assert result.digital[metric] > least
        means = {cell.record.method: cell.estimate.mean for cell in result.cells()}
        assert means["uncalibrated"] < min(means["paired"], means["auto"])
        assert list((tmp_path / name).glob("*.png"))
    assert "Evaluate annotation" not in capsys.readouterr().out


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(_shapes_demo.importlib.util, "find_spec", lambda name: None)
    assert not _shapes_demo.is_available()
    assert "pip install 'aihwkit-nabn[openmmlab]'" in _shapes_demo.install_line()
