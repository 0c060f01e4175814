"""The Gaussian model against its formula; tolerances are four standard errors."""

from __future__ import annotations

import math

import pytest
import torch
from aihwkit.nn import AnalogLinear

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator.presets import build_preset


def error_of(model: GaussianWeightNoise, weights: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with isolated_rng(seed):
        return model.apply_programming_noise(weights)[0] - weights


def assert_normal(sample: torch.Tensor, std: float) -> None:
    count = sample.numel()
    assert abs(sample.mean()) < 4 * std / math.sqrt(count)
    assert abs(sample.std() - std) < 4 * std / math.sqrt(2 * count)


@pytest.mark.parametrize("sigma", [0.02, 0.06, 0.5])
def test_additive_spread_is_a_fraction_of_the_maximum(sigma):
    weights = torch.linspace(-3.0, 2.0, 40_000).reshape(200, 200)
    assert_normal(error_of(GaussianWeightNoise(sigma), weights), sigma * 3.0)


def test_multiplicative_spread_is_a_fraction_of_each_weight():
    weights = torch.linspace(-3.0, 2.0, 40_000).reshape(200, 200)
    weights[0] = 0.0
    error = error_of(GaussianWeightNoise(0.3, relative_to="weight"), weights)
    assert torch.equal(error[0], torch.zeros(200))
    assert_normal(error[1:] / weights[1:], 0.3)


def test_layer_max_replaces_the_maximum_of_the_tile():
    weights = torch.full((100, 400), 0.1)
    model = GaussianWeightNoise(0.06)
    model.layer_max = torch.tensor(2.0)
    assert_normal(error_of(model, weights), 0.12)
    model.layer_max = torch.cat([torch.full((50, 1), 1.0), torch.full((50, 1), 5.0)])
    error = error_of(model, weights)
    assert_normal(error[:50], 0.06)
    assert_normal(error[50:], 0.30)


def test_the_unit_noise_does_not_depend_on_the_setting():
    weights = torch.rand(8, 8) + 0.1
    small, large = (error_of(GaussianWeightNoise(sigma), weights) for sigma in (0.05, 0.10))
    assert torch.allclose(2 * small, large, atol=1e-6)


def test_tiling_does_not_change_the_spread_when_the_layer_maximum_is_set():
    digital = torch.nn.Linear(400, 100, bias=False)
    with torch.no_grad():
        digital.weight.fill_(0.1)
        digital.weight[0, 0] = 1.0
    preset = build_preset("gaussian", sigma=0.06)
    preset.mapping.max_input_size = 100
    analog = AnalogLinear.from_digital(digital, preset).eval()
    tiles = list(analog.analog_tiles())
    assert len(tiles) == 4
    for tile in tiles:
        tile.rpu_config.noise_model.layer_max = digital.weight.detach().abs().max()
    with isolated_rng(0):
        analog.program_analog_weights()
    for tile in tiles:
        assert_normal(tile.programmed_weights - tile.reference_combined_weights, 0.06)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, "0.1", True, None])
def test_a_bad_sigma_is_refused(sigma):
    with pytest.raises(NabnError, match="sigma must be a finite number >= 0"):
        GaussianWeightNoise(sigma)


def test_a_bad_reference_is_refused_with_a_suggestion():
    with pytest.raises(NabnError, match="'max' or 'weight', got 'weights', did you mean 'weight'"):
        GaussianWeightNoise(relative_to="weights")
