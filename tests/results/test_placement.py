"""Placement files: written, read, and taken wherever names of modules are that stay digital."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.results.placement import Placement, excluded_names
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.weight_noise import WeightNoise

PLACEMENT = Placement(
    exclude=("0",),
    network="Sequential 0123456789abcdef",
    noise="pcm",
    t_inference=86400.0,
    method="low_rank",
    options={"budget": 0.02},
    metric="accuracy",
    bound=1.0,
    met=True,
    loss={"mean": 0.5, "low": None, "high": None, "chips": 1},
    shares={"layers": 0.1, "corrections": 0.02},
)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 2)).eval()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return PLACEMENT.to_json(tmp_path / "placement.json")


def test_what_is_written_is_read(file: Path) -> None:
    assert Placement.from_json(file) == PLACEMENT
    assert PLACEMENT.made_with == "low_rank:budget=0.02"


@pytest.mark.parametrize("form", [str, Path, lambda path: [str(path)], lambda path: (path, "3")])
def test_conversion_takes_the_file(form: Any, file: Path, model: nn.Module) -> None:
    exclude = form(file)
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(), exclude=exclude)
    assert set(named_analog_layers(analog)) == {"0", "2", "3"} - set(excluded_names(exclude))


def test_evaluate_takes_the_file_and_notes_the_names(file: Path, model: nn.Module) -> None:
    images = torch.randn(4, 4)

    def measured(exclude: Any) -> tuple[list[dict[str, float]], Any]:
        result = nabn.evaluate(
            model,
            scenarios=[nabn.Scenario(name="g", rpu_config=nabn.presets.GaussianWeightNoisePreset(sigma=0.3))],
            methods=["none"],
            chips=2,
            eval_fn=lambda candidate: {"mean": float(candidate(images).mean())},
            exclude=exclude,
            progress=False,
        )
        return [record.metrics for record in result.records], result.settings["exclude"]

    assert measured(str(file)) == measured(file) == measured(["0"])
    assert measured(["0"]) != measured(())


def test_what_else_converts_takes_the_file(file: Path, model: nn.Module) -> None:
    config = nabn.presets.GaussianWeightNoisePreset()
    assert EvaluationProtocol(model, exclude=str(file)).exclude == ("0",)
    noise = WeightNoise(model, TrainingNoise(std=0.1), exclude=file)
    assert set(noise.maps) == {"2", "3"}
    assert set(named_analog_layers(EvaluationProtocol(model, exclude=file).convert(config))) == {"2", "3"}


def test_of_another_network(file: Path) -> None:
    other = nn.Sequential()
    other.add_module("00", nn.Linear(4, 4))
    message = r"placement .*placement.json is of another network \(Sequential 0123.*\): it keeps '0' digital, .* lacks"
    with pytest.raises(NabnError, match=message + ", did you mean '00'"):
        nabn.convert_to_noise_aware(other, nabn.presets.GaussianWeightNoisePreset(), exclude=file)
    with pytest.raises(NabnError, match=message):
        nabn.evaluate(
            other,
            scenarios=[nabn.Scenario(name="g", rpu_config=nabn.presets.GaussianWeightNoisePreset())],
            methods=["none"],
            eval_fn=lambda candidate: {"mean": 0.0},
            exclude=[str(file)],
        )


def _changed(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2 of the format; this release reads version 1"),
        ({"format": "aihwkit_nabn.records"}, "no placement file of this package"),
        ({"exclude": "0"}, "damaged: exclude must not be '0'"),
        ({"exclude": [1]}, "damaged: exclude"),
        ({"bound": None}, "damaged: bound must not be None"),
        ({"met": 1}, "damaged: met"),
        ({"loss": {"mean": "x"}}, "damaged: loss"),
        ({"options": []}, "damaged: options"),
    ],
)
def test_of_another_version_or_damaged(changes: dict[str, Any], message: str, file: Path, model: nn.Module) -> None:
    with pytest.raises(NabnError, match=message):
        nabn.convert_to_noise_aware(
            model, nabn.presets.GaussianWeightNoisePreset(), exclude=str(_changed(file, **changes))
        )


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b'{"format": NaN}', b""])
def test_no_placement_at_all(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(NabnError, match=r"odd.json is (damaged, or )?no placement file"):
        excluded_names(path)
    with pytest.raises(NabnError, match=r"no placement file .*missing.json; `nabn place` writes one"):
        excluded_names(str(tmp_path / "missing.json"))
    with pytest.raises(NabnError, match="cannot read"):
        excluded_names(tmp_path)


def test_files_and_names_stand_side_by_side(file: Path) -> None:
    assert excluded_names([str(file), "head.*", "0"]) == ("0", "head.*")
    assert excluded_names("head") == ("head",) and excluded_names(()) == ()
    assert excluded_names(replace(PLACEMENT, exclude=()).to_json(file)) == ()
