"""Schedules and patterns of the variational noise against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.variational import VariationalNoise
from aihwkit_nabn.seeding import isolated_rng


def programmed(model: VariationalNoise, weights: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with isolated_rng(0):
        chip, state = model.apply_programming_noise(weights)
    return chip, state[0]


def weights_at(model: VariationalNoise, chip: torch.Tensor, state: dict, n: int) -> torch.Tensor:
    terms = model.terms(state, n)
    return chip + sum(factor * model.pattern(state, key) for key, factor in terms.items())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 7: 1.0, 10**9: 1.0}),
        ({"schedule": "ramp", "start": 0.2, "period_samples": 100}, {0: 0.2, 50: 0.6, 100: 1.0, 1000: 1.0}),
        ({"schedule": "ramp", "start": 2.0, "period_samples": 10}, {0: 2.0, 5: 1.5, 10: 1.0}),
        ({"schedule": "sine", "start": 0.5, "period_samples": 100}, {0: 0.5, 25: 0.75, 50: 1.0, 100: 0.5, 150: 1.0}),
        ({"schedule": "steps", "steps": "0.1/1/0.4", "period_samples": 10}, {0: 0.1, 9: 0.1, 10: 1, 29: 0.4, 99: 0.4}),
        ({"schedule": "steps", "steps": [0.5, 0]}, {0: 0.5, 1000: 0.0}),
        ({"schedule": "steps", "steps": 0.5}, {0: 0.5, 5000: 0.5}),
    ],
)
def test_schedules(options, expected):
    model = VariationalNoise(**options)
    assert {n: pytest.approx(model.schedule_at(n)) for n in expected} == expected


def test_the_walk_moves_by_its_period_and_can_be_asked_anywhere():
    model = VariationalNoise(schedule="walk", start=3.0, period_samples=2000)
    forward = [model.schedule_at(n, seed=5) for n in range(0, 3000, 7)]
    assert forward == [VariationalNoise(schedule="walk", start=3.0, period_samples=2000).schedule_at(n, 5)
                       for n in range(0, 3000, 7)]  # fmt: skip
    assert forward[0] == 3.0
    moved = torch.tensor([model.schedule_at(2000, seed) for seed in range(400)]) - 3.0
    assert abs(moved.mean()) < 4 / math.sqrt(400) and abs(moved.std() - 1) < 4 / math.sqrt(800)
    steps = torch.tensor([model.schedule_at(n, 1) for n in range(1000, 1100)]).diff()  # over the edge of a block
    assert abs(steps.std() * math.sqrt(2000) - 1) < 4 / math.sqrt(200)
    model.chip_seed = 3
    assert model.schedule_at(100, 1) == model.schedule_at(100, 2)


@pytest.mark.parametrize("turnover", [None, 40.0])
def test_the_noise_is_standard_normal_at_every_count(turnover):
    model = VariationalNoise(0.1, schedule="ramp", start=0.2, period_samples=100, turnover_samples=turnover)
    weights = torch.linspace(-2.0, 1.0, 40_000, dtype=torch.float64).reshape(200, 200)
    chip, state = programmed(model, weights)
    for n in (0, 10, 40, 57, 100, 1000):
        noise = (weights_at(model, chip, state, n) - weights) / (0.1 * 2.0 * model.schedule_at(n))
        assert abs(noise.mean()) < 4 / 200 and abs(noise.std() - 1) < 4 / math.sqrt(80_000)


def test_a_pattern_stays_or_turns_into_another():
    weights = torch.ones(100, 100, dtype=torch.float64)

    def correlation(turnover: float | None, n: int) -> float:
        model = VariationalNoise(0.1, schedule="constant", turnover_samples=turnover)
        chip, state = programmed(model, weights)
        pair = torch.stack([chip.flatten(), weights_at(model, chip, state, n).flatten()])
        return float(torch.corrcoef(pair)[0, 1])

    assert correlation(None, 500) == pytest.approx(1.0)
    assert correlation(100.0, 50) == pytest.approx(math.cos(math.pi / 4), abs=4 / 100)
    assert abs(correlation(100.0, 100)) < 4 / 100
    assert abs(correlation(100.0, 737)) < 4 / 100


def test_no_sample_processed_changes_nothing():
    for turnover in (None, 30.0):
        model = VariationalNoise(turnover_samples=turnover)
        _, state = programmed(model, torch.randn(5, 4))
        assert all(factor == 0.0 for factor in model.terms(state, 0).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1}, "sigma must be"),
        ({"schedule": "ramps"}, "schedule must be one of constant, ramp, .* got 'ramps', did you mean 'ramp'"),
        ({"period_samples": 0}, "period_samples must be a finite number > 0"),
        ({"start": -0.1}, "start must be"),
        ({"turnover_samples": 0}, "turnover_samples must be a finite number > 0"),
        ({"schedule": "steps"}, "steps must hold numbers for schedule 'steps'"),
        ({"steps": "1/2"}, "for no other, got '1/2'"),
        ({"schedule": "steps", "steps": "1/x"}, "steps must be a finite number >= 0, got 'x'"),
        ({"schedule": "steps", "steps": [0.1, -1]}, "steps must be a finite number >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(NabnError, match=message):
        VariationalNoise(**options)
