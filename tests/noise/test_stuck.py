"""Stuck devices, device by device against a slow loop; tolerances are four standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.stuck import StuckDevices
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator import build_preset


def stuck(model: StuckDevices, weights: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with isolated_rng(seed):
        chip, state = model.apply_programming_noise(weights)
    return chip, state[0]


def weights_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def slow(weights: np.ndarray, off: np.ndarray, on: np.ndarray, g_max: float) -> np.ndarray:
    out = np.empty_like(weights)
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            pair = [max(weights[row, column], 0.0), max(-weights[row, column], 0.0)]
            for device in range(2):
                if off[device, row, column]:
                    pair[device] = 0.0
                if on[device, row, column]:
                    pair[device] = g_max
            out[row, column] = pair[0] - pair[1]
    return out


def test_pairs_follow_the_slow_loop():
    weights = weights_of(30, 20)
    chip, state = stuck(StuckDevices(0.2, 0.3), weights)
    on, off = state["stuck_on"].numpy(), state["stuck_off"].numpy()
    assert not (on & off).any()
    expected = slow(weights.numpy(), off, on, float(weights.abs().max()))
    assert np.array_equal(chip.numpy(), expected)
    untouched = ~(on | off).any(0)
    assert untouched.any() and np.array_equal(chip.numpy()[untouched], weights.numpy()[untouched])


@pytest.mark.parametrize(("p_off", "p_on", "scale"), [(0.1, 0.0, 1.0), (0.0, 0.05, 1.0), (0.02, 0.01, 3.0)])
def test_rates_are_those_asked_for(p_off, p_on, scale):
    _, state = stuck(StuckDevices(p_off, p_on, scale), weights_of(200, 100))
    for drawn, p in ((state["stuck_off"], p_off * scale), (state["stuck_on"], p_on * scale)):
        assert abs(drawn.double().mean() - p) <= 4 * math.sqrt(p * (1 - p) / drawn.numel())
    assert abs(state["stuck_off"][0].double().mean() - p_off * scale) < 0.02


def test_all_off_is_nothing_and_all_on_is_nothing():
    weights = weights_of(4, 5)
    assert torch.equal(stuck(StuckDevices(1.0, 0.0), weights)[0], torch.zeros(4, 5))
    assert torch.equal(stuck(StuckDevices(0.0, 1.0), weights)[0], torch.zeros(4, 5))  # g_max - g_max


def test_holding_is_idempotent_and_keeps_stuck_pairs_in_place():
    model, weights = StuckDevices(0.2, 0.2), weights_of(30, 20).double()
    chip, state = stuck(model, weights)
    assert torch.allclose(model.hold(chip, state), chip, atol=1e-12)
    moved = chip + 0.3 * weights_of(30, 20).double()
    held = model.hold(moved, state)
    assert torch.allclose(model.hold(held, state), held, atol=1e-12)
    fault = state["stuck_on"] | state["stuck_off"]
    g_max, on = weights.abs().max(), state["stuck_on"]
    assert torch.equal(held[~fault.any(0)], moved[~fault.any(0)])
    both = fault.all(0)
    assert torch.equal(held[both], chip[both])
    only_plus_off = state["stuck_off"][0] & ~fault[1]
    assert (held[only_plus_off] <= 0).all()
    only_minus_on = on[1] & ~fault[0]
    assert (held[only_minus_on] >= -g_max).all()
    assert torch.allclose(held[only_minus_on], moved[only_minus_on].clamp(min=-float(g_max)))


def test_faults_stay_for_the_life_of_the_chip():
    preset = build_preset("stuck", p_off=0.1)
    net = torch.nn.Sequential(torch.nn.Linear(30, 20, bias=False)).eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, preset), seed=1)
    first = chip[0].weight.clone()
    assert (first == 0).any()
    for t_inference in ("1h", "1y", 0.0):
        nabn.drift_chip(chip, t_inference)
        assert torch.equal(chip[0].weight, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_off": -0.1}, "p_off must be the probability of being stuck at 0, between 0 and 1, got -0.1"),
        ({"p_on": 1.1}, "p_on must be the probability of being stuck at g_max, between 0 and 1"),
        ({"p_off": 0.6, "p_on": 0.6}, r"fault_scale \* \(p_off \+ p_on\) must be <= 1, got 1 \* \(0.6 \+ 0.6\)"),
        ({"p_off": 0.5, "fault_scale": 3}, "must be <= 1"),
        ({"fault_scale": "2"}, "fault_scale must be"),
    ],
)
def test_bad_rates_are_refused(options, message):
    with pytest.raises(NabnError, match=message):
        StuckDevices(**options)
