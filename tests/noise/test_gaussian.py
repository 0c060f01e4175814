"""The Gaussian model against its formula; tolerances are four standard errors."""

from __future__ import annotations

import math

import pytest
import torch
from aihwkit.nn import AnalogLinear

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise import ComposedNoise
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json
from aihwkit_nabn.simulator.config.presets import build_preset, parse_preset
from aihwkit_nabn.simulator.config.rpu_config import columnwise_mapping, weight_mapping
from tests.tensors import assert_moments


def error_of(model: GaussianWeightNoise, weights: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with isolated_rng(seed):
        return model.apply_programming_noise(weights)[0] - weights


@pytest.mark.parametrize("sigma", [0.02, 0.06, 0.5])
def test_additive_spread_is_a_fraction_of_the_maximum(sigma):
    weights = torch.linspace(-3.0, 2.0, 40_000).reshape(200, 200)
    assert_moments(error_of(GaussianWeightNoise(sigma), weights), 0.0, sigma * 3.0)


def test_multiplicative_spread_is_a_fraction_of_each_weight():
    weights = torch.linspace(-3.0, 2.0, 40_000).reshape(200, 200)
    weights[0] = 0.0
    error = error_of(GaussianWeightNoise(0.3, relative_to="weight"), weights)
    assert torch.equal(error[0], torch.zeros(200))
    assert_moments(error[1:] / weights[1:], 0.0, 0.3)


def test_layer_max_replaces_the_maximum_of_the_tile():
    weights = torch.full((100, 400), 0.1)
    model = GaussianWeightNoise(0.06)
    model.layer_max = torch.tensor(2.0)
    assert_moments(error_of(model, weights), 0.0, 0.12)
    model.layer_max = torch.cat([torch.full((50, 1), 1.0), torch.full((50, 1), 5.0)])
    error = error_of(model, weights)
    assert_moments(error[:50], 0.0, 0.06)
    assert_moments(error[50:], 0.0, 0.30)


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
        assert_moments(tile.programmed_weights - tile.reference_combined_weights, 0.0, 0.06)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, "0.1", True, None])
def test_a_bad_sigma_is_refused(sigma):
    with pytest.raises(NabnError, match="sigma must be a finite number >= 0"):
        GaussianWeightNoise(sigma)


def test_a_bad_reference_is_refused_with_a_suggestion():
    with pytest.raises(NabnError, match="'max', 'column' or 'weight', got 'weights', did you mean 'weight'"):
        GaussianWeightNoise(relative_to="weights")


def test_noise_relative_to_the_column_is_that_of_the_layer_times_each_outputs_share_of_its_maximum():
    weights = torch.randn(50, 30) * torch.logspace(-3, 1, 50).view(-1, 1)
    weights[7] = 0.0
    of_layer = error_of(GaussianWeightNoise(0.05), weights.double()) / weights.abs().max()
    of_column = error_of(GaussianWeightNoise(0.05, relative_to="column"), weights.double())
    expected = torch.stack([row * weight.abs().max() for row, weight in zip(of_layer, weights, strict=True)])
    assert torch.allclose(of_column, expected, rtol=1e-6)
    assert torch.equal(of_column[7], torch.zeros(30, dtype=torch.float64))


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Linear(11, 7),
        torch.nn.Conv2d(6, 9, (3, 1), groups=3),
        torch.nn.Conv1d(5, 5, 3, groups=5),
        torch.nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("mapping", [weight_mapping, columnwise_mapping])
@pytest.mark.parametrize("rows", [512, 4])
def test_a_chips_noise_relative_to_the_column_is_that_of_the_column_of_each_tile(layer, mapping, rows):
    chips = []
    for relative_to in ("column", "max"):
        preset = build_preset("gaussian", sigma=0.05, relative_to=relative_to, mapping=mapping())
        preset.mapping.max_input_size = rows
        chips.append(nabn.program_chip(nabn.convert_to_noise_aware(torch.nn.Sequential(layer), preset), 3))
    tiles, others = (list(chip.get_submodule("0").analog_tiles()) for chip in chips)
    largest = max(_in_weights(tile, tile.reference_combined_weights).abs().max() for tile in others)
    for tile, other in zip(tiles, others, strict=True):
        target = _in_weights(tile, tile.reference_combined_weights)
        unit = (_in_weights(other, other.programmed_weights) - target) / largest
        error = _in_weights(tile, tile.programmed_weights) - target
        assert torch.allclose(error, unit * target.abs().max(1, keepdim=True).values, atol=1e-6)


def _in_weights(tile: torch.nn.Module, weights: torch.Tensor) -> torch.Tensor:
    return weights if tile.mapping_scales is None else weights * tile.mapping_scales.view(-1, 1)


def test_in_a_composition_the_columns_are_those_of_the_target():
    weights = torch.randn(6, 9)
    model = ComposedNoise([dict(type="gaussian", sigma=0.0), dict(type="gaussian", sigma=0.1, relative_to="column")])
    alone = GaussianWeightNoise(0.1, relative_to="column")
    with isolated_rng(0):
        torch.randn(6, 9)  # what the first effect draws
        expected = alone.apply_programming_noise(weights)[0]
    assert torch.equal(error_of(model, weights), expected - weights)
    doubled = ComposedNoise([_Doubled(), dict(type="gaussian", sigma=0.1, relative_to="column")])
    assert torch.allclose(error_of(doubled, weights) - weights, error_of(alone, weights), atol=1e-6)


class _Doubled(GaussianWeightNoise):
    def __init__(self) -> None:
        super().__init__()

    def program(self, weights, w_max, generator):
        return 2 * weights


def test_the_command_line_and_files_of_settings_keep_the_reference():
    config = parse_preset("gaussian:sigma=0.04,relative_to=column")
    assert config.noise_model == GaussianWeightNoise(0.04, relative_to="column")
    assert config_from_json(config_to_json(config)).noise_model == config.noise_model
