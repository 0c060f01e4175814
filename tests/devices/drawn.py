"""Measured rows of devices that are known: made up, or drawn from noise models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

from aihwkit_nabn.devices import Measurements
from aihwkit_nabn.noise.reram import ReRAMWan
from aihwkit_nabn.seeding import isolated_rng

Array = np.ndarray[Any, np.dtype[np.float64]]
Function = Callable[[Array], Array]


def rows_of(target: Array, seconds: Array, conductance: Array) -> Measurements:
    """Return the readings of devices, `conductance` being ``[devices, times, reads]``."""
    devices, times, reads = conductance.shape
    return Measurements(
        target=np.repeat(target, times * reads),
        conductance=conductance.reshape(-1),
        seconds=np.tile(np.repeat(seconds, reads), devices),
        device=np.repeat(np.arange(devices), times * reads),
    )


def made_up(
    levels: Array,
    per_level: int,
    seconds: Array,
    reads: int,
    *,
    offset_us: Function,
    spread_us: Function,
    exponent: Function,
    exponent_spread: Function,
    read_spread: Function,
    seed: int = 0,
) -> Measurements:
    """Return readings of a device with these curves, functions of ``x = target / largest target``."""
    rng = np.random.default_rng(seed)
    target = np.repeat(levels, per_level)
    x = target / levels.max()
    programmed = np.maximum(target + offset_us(x) + spread_us(x) * rng.standard_normal(len(x)), 0.0)
    nu = exponent(x) + exponent_spread(x) * rng.standard_normal(len(x))
    drifted = programmed[:, None] * (seconds / seconds[0]) ** -nu[:, None]
    read = 1 + read_spread(x)[:, None, None] * rng.standard_normal((len(x), len(seconds), reads))
    return rows_of(target, seconds, np.maximum(drifted[:, :, None] * read, 0.0))


def of_pcm(levels: Array, per_level: int, times: Array, reads: int, *, seed: int = 0) -> Measurements:
    """Return readings of single devices of aihwkit's PCM model, which `pcm` has pairs of (`test_devices.py`).

    The model counts from t_0 = 20 s after programming.
    """
    model = PCMLikeNoiseModel(g_max=25.0)
    target = torch.tensor(np.repeat(levels, per_level))
    with isolated_rng(seed):
        programmed = model.apply_programming_noise_to_conductance(target)
        nu = model.generate_drift_coefficients(target)
        found = [
            [model.apply_drift_noise_to_conductance(programmed, nu, float(time)).numpy() for _ in range(reads)]
            for time in times
        ]
    return rows_of(target.numpy(), times + 20.0, np.array(found).transpose(2, 0, 1))


def of_reram_wan(levels: Array, per_level: int, *, seed: int = 0) -> Measurements:
    """Return one reading right after programming of single devices of `reram_wan`."""
    g_max = float(levels.max())
    weights = torch.tensor(np.concatenate([[g_max], np.repeat(levels, per_level)]))[None]
    with isolated_rng(seed):
        _, (state,) = ReRAMWan(g_max_us=g_max).apply_programming_noise(weights)
    found = state["latent_us"][0, 0, 1:].clamp(min=0.0).numpy()
    return rows_of(np.repeat(levels, per_level), np.zeros(1), found[:, None, None])
