"""Ambient temperature and reference currents against their formulas; tolerances are four standard errors."""

from __future__ import annotations

import math

import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.reference_current import ReferenceCurrentVariation
from aihwkit_nabn.noise.temperature import TemperatureVariation
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator import build_preset
from tests.tensors import assert_moments


def factors(model, weights: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with isolated_rng(seed):
        return model.apply_programming_noise(weights)[0] / weights


def test_devices_spread_about_the_mean_change():
    factor = factors(TemperatureVariation(0.001, mean_k=50.0, sigma_k=0.0), torch.full((100, 100), 0.4).double())
    assert_moments(factor, 1.05, 0.05 * 0.3)


def test_chips_spread_about_the_mean_temperature():
    model = TemperatureVariation(0.001, mean_k=10.0, sigma_k=20.0, coefficient_spread=0.0)
    chips = torch.stack([factors(model, torch.ones(2, 2).double(), seed)[0, 0] for seed in range(400)])
    assert_moments(chips, 1.01, 0.02)


def test_conductances_do_not_change_sign():
    factor = factors(TemperatureVariation(-0.02, mean_k=60.0), torch.full((50, 50), -0.4).double())
    assert factor.min() == 0.0


def test_all_tiles_of_a_chip_have_one_temperature():
    preset = build_preset("temperature", coefficient_spread=0.0)
    preset.mapping.max_input_size = 8
    net = torch.nn.Sequential(torch.nn.Linear(20, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    chip = nabn.convert_to_noise_aware(net, preset)
    seen = []
    for seed in (0, 1):
        nabn.program_chip(chip, seed)
        ratio = torch.cat([(chip[i].weight / net[i].weight.detach()).flatten() for i in (0, 2)])
        assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4)
        seen.append(ratio[0].item())
    assert abs(seen[0] - seen[1]) > 1e-4


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_outputs_have_gains_that_are_partly_shared(shared):
    model = ReferenceCurrentVariation(0.05, shared=shared)
    gains = torch.stack([factors(model, torch.full((20, 3), 0.7).double(), seed) for seed in range(300)])
    assert torch.allclose(gains, gains[..., :1].expand_as(gains))
    gains = gains[..., 0]
    assert_moments(gains[:, 0], 1.0, 0.05)
    correlation = torch.corrcoef(gains.T)[~torch.eye(20, dtype=torch.bool)].mean()
    assert abs(correlation - shared) < 4 / math.sqrt(300)


def test_alignment_takes_a_gain_error_away(images, settle, relative):
    torch.manual_seed(0)
    net = settle(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.ReLU()))
    chip = nabn.convert_to_noise_aware(net, nabn.presets.ReferenceCurrentVariationPreset(sigma=0.3))
    nabn.program_chip(chip, seed=2)
    x = images(16)
    assert relative(chip(x), net(x)) > 0.05
    nabn.calibrate(chip, [x], method="paired", reference=net)
    assert relative(chip(x), net(x)) < 2e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TemperatureVariation(math.inf), "temperature_coefficient_per_k must be a finite number"),
        (lambda: TemperatureVariation(sigma_k=-1), "sigma_k must be a finite number >= 0"),
        (lambda: TemperatureVariation(coefficient_spread=-1), "coefficient_spread must be"),
        (lambda: ReferenceCurrentVariation(-0.1), "sigma must be a finite number >= 0"),
        (lambda: ReferenceCurrentVariation(shared=1.2), "shared must be the share of the variance .*, between 0 and 1"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(NabnError, match=message):
        build()
