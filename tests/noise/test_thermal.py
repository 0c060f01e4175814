"""Thermal crosstalk against a slow loop over cells and neighbours; tolerances are four standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.thermal import ThermalCrosstalk
from aihwkit_nabn.seeding import isolated_rng


def weights_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_rise(w: np.ndarray, m: ThermalCrosstalk) -> np.ndarray:
    power = m.duty * m.v_read**2 * m.g_max_us * np.abs(w) / np.abs(w).max()
    rise = np.zeros_like(w)
    rows, columns = w.shape
    for i in range(rows):
        for j in range(columns):
            for k in range(rows):
                for l in range(columns):  # noqa: E741
                    if abs(i - k) <= m.radius_cells and abs(j - l) <= m.radius_cells:
                        d = math.hypot(i - k, j - l)
                        share = 1.0 if d == 0 else m.coupling * math.exp(-(d - 1) / m.decay_cells)
                        rise[i, j] += m.thermal_resistance_k_per_uw * share * power[k, l]
    return rise


@pytest.mark.parametrize("shape", [(6, 5), (1, 7), (4, 1)])
@pytest.mark.parametrize(
    "model",
    [
        ThermalCrosstalk(),
        ThermalCrosstalk(2.0, coupling=0.5, decay_cells=3.0, radius_cells=1, g_max_us=25.0, v_read=0.2, duty=0.5),
        ThermalCrosstalk(coupling=0.0),
        ThermalCrosstalk(radius_cells=0),
    ],
    ids=["default", "other", "no coupling", "no neighbours"],
)
def test_the_rise_follows_the_slow_loop(model, shape):
    weights = weights_of(*shape)
    assert np.allclose(model.temperature_rise_k(weights).numpy(), slow_rise(weights.numpy(), model), rtol=1e-12)


def test_one_hot_cell_warms_its_neighbours_less_with_distance():
    weights = torch.zeros(9, 9, dtype=torch.float64)
    weights[4, 4] = -2.0
    rise = ThermalCrosstalk(1.0, coupling=0.3).temperature_rise_k(weights)
    assert rise[4, 4].item() == pytest.approx(0.3**2 * 40.0)
    assert rise[4, 5].item() == pytest.approx(0.3 * rise[4, 4].item())
    assert rise[4, 4] > rise[4, 5] > rise[5, 5] > rise[4, 6] > 0 and rise[4, 8] == 0
    assert torch.allclose(rise, rise.T)


def test_weights_change_by_the_coefficient_with_its_spread():
    weights = torch.full((100, 100), 0.7, dtype=torch.float64)
    model = ThermalCrosstalk(temperature_coefficient_per_k=-0.001, coefficient_spread=0.2)
    with isolated_rng(0):
        chip, _ = model.apply_programming_noise(weights)
    unit = ((chip / weights - 1) / (-0.001 * model.temperature_rise_k(weights)) - 1) / 0.2
    assert abs(unit.mean()) < 4 / 100 and abs(unit.std() - 1) < 4 / math.sqrt(2 * unit.numel())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thermal_resistance_k_per_uw": -1}, "thermal_resistance_k_per_uw must be a finite number >= 0"),
        ({"coupling": 1.5}, "coupling must be the share of .* neighbour, between 0 and 1, got 1.5"),
        ({"decay_cells": 0}, "decay_cells must be a finite number > 0"),
        ({"radius_cells": 1.5}, "radius_cells must be an integer >= 0"),
        ({"temperature_coefficient_per_k": math.nan}, "temperature_coefficient_per_k must be a finite number"),
        ({"duty": 2}, "duty must be"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(NabnError, match=message):
        ThermalCrosstalk(**options)
