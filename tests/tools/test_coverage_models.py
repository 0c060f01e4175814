from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import coverage_models
from coverage_models import MODELS, Coverage, largest_error, measure_all, randomize

from aihwkit_nabn import cli  # noqa: F401
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import UnknownNameError
from tests.tensors import equal


@pytest.mark.parametrize("name", ["rtmdet_tiny", "ssdlite_mobilenetv2", "segformer mit-b0", "fast_scnn"])
def test_small_models_go_on_tiles(name: str) -> None:
    (row,) = measure_all([name])
    assert row.problem == "" and row.passes and row.layers <= row.tiles and row.calibrated_through == "tensor"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolact r50", "pointrend r50"])
def test_models_without_a_pass_that_ends_in_tensors_go_on_tiles_too(name: str) -> None:
    (row,) = measure_all([name])
    assert row.problem == "" and row.passes and row.calibrated_through == "predict"


def test_the_list() -> None:
    assert len([c for c in MODELS.values() if c.startswith("mmdet::")]) == 20
    assert len([c for c in MODELS.values() if c.startswith("mmseg::")]) == 13
    with pytest.raises(UnknownNameError, match="did you mean 'yolox_s'"):
        next(measure_all(["yolox"]))


def test_errors_are_relative_and_never_overlooked() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert largest_error(torch.tensor([1.0, -4.4]), expected) == pytest.approx(0.1)
    assert largest_error(torch.tensor([math.nan, -4.0]), expected) == math.inf
    assert largest_error(torch.empty(0), torch.empty(0)) == 0.0


def test_random_values_reach_everything() -> None:
    models = []
    for _ in range(2):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        nn.init.zeros_(model[0].weight)
        randomize(model, seed=3)
        models.append(model)
    assert equal(*(model.state_dict() for model in models))
    assert all(value.float().abs().min() > 0 for name, value in models[0].state_dict().items() if "batches" not in name)


def test_a_model_that_fails_is_a_row_and_the_exit_code(tmp_path: Path, monkeypatch, capsys) -> None:
    path = Path(__file__).parents[2] / "tools" / "model_coverage.py"
    spec = importlib.util.spec_from_file_location("nabn_tool_model_coverage", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    good = Coverage(model="a", layers=2, tiles=3, share=1.0, error=1e-7, predicts=True, calibrated_through="predict")

    def measure(config_name: str, *, name: str, noise: str, seed: int) -> Coverage:
        if name == "unet":
            raise RuntimeError("broken\nmore")
        return good

    monkeypatch.setattr(coverage_models, "measure", measure)
    out = tmp_path / "docs" / "c.md"
    assert run(tool.app, ["fast_scnn", "--out", str(out)]) == 0
    assert "| a | 2 | 3 | 100.00% | 1.0e-07 | yes | predict |" in out.read_text() and tool.COMMAND in out.read_text()
    assert run(tool.app, ["fast_scnn", "unet"]) == 1
    assert "unet: RuntimeError: broken" in capsys.readouterr().out
