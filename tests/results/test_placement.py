"""Placement files: written, read, and taken wherever names of modules are that stay digital."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.nn.excluding import matrix_layers, placed_names
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.results.placement import Placement, excluded_names
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.weight_noise import WeightNoise

PLACEMENT = Placement(
    exclude=("0",),
    layers=("0", "2", "3"),
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


CONFIG = nabn.presets.GaussianWeightNoisePreset()
OTHER = r"the placement .*placement.json is of another network \(Sequential 0123.*\): it "


def _model(**layers: nn.Module) -> nn.Module:
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval()


def _uses(file: Path, model: nn.Module) -> list[Callable[[], object]]:
    """Everything that takes a network and a placement, by file and by what was read of it before."""
    scenario = nabn.Scenario(name="g", rpu_config=CONFIG)
    given: dict[str, Any] = {"scenarios": [scenario], "methods": ["none"], "eval_fn": lambda candidate: {"mean": 0.0}}
    early = pickle.loads(pickle.dumps(EvaluationProtocol(model, exclude=[str(file)]).exclude))
    return [
        lambda: nabn.convert_to_noise_aware(model, CONFIG, exclude=file),
        lambda: nabn.evaluate(model, exclude=[str(file)], progress=False, **given),
        lambda: EvaluationProtocol(model, exclude=early).convert(CONFIG),
        lambda: WeightNoise(model, TrainingNoise(std=0.1), exclude=file),
    ]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {"00": nn.Linear(4, 4), "2": nn.Linear(4, 3), "3": nn.Linear(3, 2)},
            "keeps '0' digital, which this model lacks, did you mean '00'",
        ),
        ({"0": nn.Linear(4, 4), "2": nn.Linear(4, 3)}, "has a layer '3', which this model lacks"),
        (
            {"0": nn.Linear(4, 4), "2": nn.Linear(4, 3), "3": nn.Linear(3, 2), "4": nn.Linear(2, 2)},
            "lacks the layer '4', which this model has",
        ),
    ],
)
def test_of_another_network(layers: dict[str, nn.Module], message: str, file: Path) -> None:
    for use in _uses(file, _model(**layers)):
        with pytest.raises(ConversionError, match=OTHER + message):
            use()


def test_what_is_no_layer_is_refused(tmp_path: Path, model: nn.Module) -> None:
    file = replace(PLACEMENT, exclude=("0", "1")).to_json(tmp_path / "placement.json")
    for use in _uses(file, model):
        with pytest.raises(ConversionError, match=r"placement.json keeps '1' digital, .* no layer .* a ReLU without"):
            use()


def test_other_weights_of_the_network_are_fine(file: Path, model: nn.Module) -> None:
    nn.init.ones_(model[0].weight)
    nn.utils.parametrizations.weight_norm(model[2])
    assert matrix_layers(model) == PLACEMENT.layers
    analog = nabn.convert_to_noise_aware(model, CONFIG, exclude=file)
    assert set(named_analog_layers(analog)) == {"2", "3"}


def test_names_in_a_file_are_no_patterns(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a0": nn.Linear(2, 2)}))
    exclude = placed_names(model, ("0.a[0]",))
    assert exclude == ("0.a[0]",)
    file = replace(PLACEMENT, exclude=exclude, layers=matrix_layers(model)).to_json(tmp_path / "placement.json")
    analog = nabn.convert_to_noise_aware(model, CONFIG, exclude=file)
    assert set(named_analog_layers(analog)) == {"0.a0"}


def test_patterns_become_the_outermost_modules_that_hold_matrices() -> None:
    block = _model(conv=nn.Conv2d(2, 2, 1), norm=nn.BatchNorm2d(2), act=nn.ReLU())
    model = _model(stem=nn.Conv2d(2, 2, 1), body=block, act=nn.ReLU(), table=nn.Embedding(3, 2))
    assert placed_names(model, ("body*", "act", "table")) == ("body",)
    assert placed_names(model, ("*",)) == ("stem", "body")
    assert placed_names(model, ("*.conv", "*.norm")) == ("body.conv",)
    assert matrix_layers(model) == ("stem", "body.conv")


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
        ({"layers": None}, "damaged: layers"),
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


def test_cut_off_anywhere(file: Path) -> None:
    whole = file.read_bytes().rstrip()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(NabnError, match="placement.json is (damaged|no placement)"):
            excluded_names(file)


@pytest.mark.parametrize("exclude", [3, None, [3], [["0"]], ("0", None)])
def test_what_names_nothing(exclude: Any, model: nn.Module) -> None:
    with pytest.raises(ConversionError, match="exclude must be names of modules, patterns of names, or files"):
        nabn.convert_to_noise_aware(model, CONFIG, exclude=exclude)


def test_files_and_names_stand_side_by_side(file: Path) -> None:
    found = excluded_names([str(file), "head.*", "0"])
    assert found == ("0", "head.*") and json.dumps(found) == '["0", "head.*"]'
    assert excluded_names(found) == found and excluded_names(found)[0] is found[0], "read once"
    assert excluded_names("head") == ("head",) and excluded_names(()) == ()
    assert excluded_names(replace(PLACEMENT, exclude=()).to_json(file)) == ()
