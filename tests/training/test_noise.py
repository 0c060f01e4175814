from __future__ import annotations

from typing import Any

import pytest
import torch
from aihwkit.simulator.parameters.enums import WeightModifierType
from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator import build_preset, parse_preset
from aihwkit_nabn.training import TrainingNoise, matched_noise


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 32)).eval()


def test_gaussian_noise_is_taken_as_it_is(model: nn.Module) -> None:
    additive = matched_noise(model, build_preset("gaussian", sigma=0.06))
    assert additive == TrainingNoise(std=0.06)
    assert additive.modifier().type == WeightModifierType.ADD_NORMAL and additive.modifier().std_dev == 0.06
    multiplicative = matched_noise(model, build_preset("gaussian", sigma=0.3, relative_to="weight"))
    assert multiplicative.kind == "multiplicative" and multiplicative.modifier().type == WeightModifierType.MULT_NORMAL
    # aihwkit's modifiers know the tile's largest weight only: measured, and less than that of the tile's maximum
    column = matched_noise(model, build_preset("gaussian", sigma=0.06, relative_to="column"))
    assert column.kind == "additive" and 0.2 * 0.06 < column.std < 0.06
    assert matched_noise(model, build_preset("gaussian", sigma=0.0)).modifier().type == WeightModifierType.NONE


def test_other_noise_is_measured_on_chips(model: nn.Module) -> None:
    # The same Gaussian noise, but as one effect of a composition, which the function cannot look into.
    measured = matched_noise(model, parse_preset("gaussian:sigma=0.05+stuck:p_off=0,p_on=0"))
    assert measured.kind == "additive" and measured.std == pytest.approx(0.05, rel=0.03)


def test_pcm_noise_grows_with_time_and_drift_compensation_counts(model: nn.Module) -> None:
    day, decade = (matched_noise(model, build_preset("pcm"), time).std for time in ("1d", "10y"))
    assert 0.02 < day < decade < 0.1
    uncompensated = matched_noise(model, build_preset("pcm", drift_compensation=None), "1d").std
    assert uncompensated > 2 * day
    assert matched_noise(model, build_preset("pcm"), "1d").std == day


def test_scaled_noise() -> None:
    noise = TrainingNoise(std=0.08, kind="multiplicative")
    assert noise.scaled(0.25) == TrainingNoise(std=0.02, kind="multiplicative")
    assert str(noise) == "multiplicative 0.08"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": -0.1}, "std must be a finite number >= 0"),
        ({"std": float("nan")}, "std must be"),
        ({"std": 0.1, "kind": "aditive"}, "did you mean 'additive'"),
    ],
)
def test_bad_noise_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        TrainingNoise(**arguments)


def test_bad_arguments_of_matching_are_named(model: nn.Module) -> None:
    with pytest.raises(NabnError, match="chips must be an integer >= 1"):
        matched_noise(model, build_preset("pcm"), chips=0)
    with pytest.raises(NabnError, match="time must be seconds"):
        matched_noise(model, build_preset("pcm"), "soon")
