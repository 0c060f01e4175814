"""Compositions: order, drift, faults that hold; what single models promise, they promise too."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.noise import ComposedNoise
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.noise.reram import ReRAMWan
from aihwkit_nabn.noise.stuck import StuckDevices
from aihwkit_nabn.noise.temperature import TemperatureVariation
from aihwkit_nabn.noise.variational import VariationalNoise
from aihwkit_nabn.seeding import isolated_rng
from tests.chips import aged

DAY = 86_400.0
COMPOSITIONS = {
    "pcm+stuck": lambda: ComposedNoise([PCM(), StuckDevices(0.1, 0.05)]),
    "stuck+gaussian+thermal": lambda: ComposedNoise([StuckDevices(0.1), "gaussian", "thermal"]),
    "temperature twice": lambda: ComposedNoise([TemperatureVariation(), TemperatureVariation()]),
    "reram+variational": lambda: ComposedNoise(["reram_wan", dict(type="VariationalNoisePreset", sigma=0.1)]),
    "one": lambda: ComposedNoise(["reference_current"]),
}


def weights_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", COMPOSITIONS.values(), ids=COMPOSITIONS)
@pytest.mark.parametrize("shape", [(8, 12), (3,), (2, 3, 4), (0, 4), (4, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_shapes_types_and_seeds(build, shape, dtype):
    weights = weights_of(*shape).to(dtype)
    for t_inference in (None, 0.0, DAY):
        first, again = (aged(build(), weights, t_inference)[0] for _ in range(2))
        assert first.shape == weights.shape and first.dtype == dtype and torch.isfinite(first).all()
        assert torch.equal(first, again)
        if weights.numel() > 50:
            assert not torch.equal(first, aged(build(), weights, t_inference, seed=5)[0])


@pytest.mark.parametrize("build", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_compositions_print_compare_and_copy(build):
    model = build()
    for twin in (build(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin == model and repr(twin) == repr(model) and str(twin) == str(model)
    assert model != ComposedNoise([GaussianWeightNoise(0.5)])
    names = {type(effect).__name__: type(effect) for effect in model.effects}
    assert eval(repr(model), {"ComposedNoise": ComposedNoise, **names}) == model


def test_effects_follow_one_another():
    weights = weights_of(8, 12)
    gaussian, temperature = GaussianWeightNoise(0.1), TemperatureVariation()
    with isolated_rng(3):
        expected, _ = gaussian.apply_programming_noise(weights)
        expected, _ = temperature.apply_programming_noise(expected)
    with isolated_rng(3):
        got, _ = ComposedNoise([gaussian, temperature]).apply_programming_noise(weights)
    assert torch.equal(got, expected)


def test_one_effect_is_that_effect():
    weights = weights_of(8, 12)
    for t_inference in (None, 1.0, DAY):
        assert torch.equal(aged(ComposedNoise([PCM()]), weights, t_inference)[0], aged(PCM(), weights, t_inference)[0])


def test_effects_that_are_off_change_nothing():
    weights = weights_of(8, 12)
    model = ComposedNoise([PCM(noise_scale=0), StuckDevices(fault_scale=0), VariationalNoise(sigma=0)])
    for t_inference in (None, DAY):
        assert torch.equal(aged(model, weights, t_inference)[0], weights)


@pytest.mark.parametrize("order", [0, 1])
def test_stuck_devices_stay_stuck_while_the_others_drift(order):
    effects = [PCM(), StuckDevices(0.2, 0.1)]
    model = ComposedNoise(effects if order == 0 else effects[::-1])
    weights = weights_of(20, 30)
    programmed, state = aged(model, weights)
    index = 1 if order == 0 else 0
    on, off = state[0][f"{index}.stuck_on"], state[0][f"{index}.stuck_off"]
    healthy, fault = ~(on | off).any(0), on | off
    g_max = weights.abs().max()
    with isolated_rng(0):
        alone, alone_state = PCM().apply_programming_noise(weights)
    assert torch.equal(programmed[healthy], alone[healthy])
    for t_inference in (1.0, DAY, 1e8):
        with isolated_rng(1):
            drifted = model.apply_drift_noise(programmed, state, t_inference)
        with isolated_rng(1):
            expected = PCM().apply_drift_noise(alone, alone_state, t_inference)
        assert torch.equal(drifted[healthy], expected[healthy])
        assert torch.equal(drifted[fault.all(0)], programmed[fault.all(0)])
        plus_off = off[0] & ~fault[1]
        assert torch.equal(drifted[plus_off], expected.clamp(max=0)[plus_off])
        minus_on = on[1] & ~fault[0]
        assert torch.allclose(drifted[minus_on], expected.clamp(min=0)[minus_on] - g_max)


def test_moving_noise_leaves_stuck_devices_alone():
    model = ComposedNoise([GaussianWeightNoise(0.1), VariationalNoise(0.3), StuckDevices(0.2, 0.1)])
    chip, state = aged(model, weights_of(20, 30))
    terms = model.terms(state[0], 1000)
    moved = chip + sum(factor * model.pattern(state[0], key) for key, factor in terms.items())
    held = model.hold(moved, state[0])
    fault = state[0]["2.stuck_on"] | state[0]["2.stuck_off"]
    assert torch.equal(held[~fault.any(0)], moved[~fault.any(0)]) and not torch.equal(held, chip)
    assert torch.equal(held[fault.all(0)], chip[fault.all(0)])
    with pytest.raises(NabnError, match="pattern must be named by one of the keys"):
        model.pattern(state[0], (0, 0))


def test_what_it_is_follows_from_its_effects():
    mixed = ComposedNoise([ReRAMWan(), VariationalNoise()])
    assert mixed.drifts and mixed.columnwise_mapping and mixed.varies and mixed.t_range_s == ReRAMWan.t_range_s
    plain = ComposedNoise([GaussianWeightNoise(), GaussianWeightNoise()])
    assert not (plain.drifts or plain.columnwise_mapping or plain.varies)
    with pytest.raises(NabnError, match="t_inference must be 0 to 172800 seconds"):
        mixed.check_time(200_000.0)


def test_effects_are_copies_and_compositions_are_taken_apart():
    gaussian = GaussianWeightNoise()
    model = ComposedNoise([gaussian, ComposedNoise([gaussian, "pcm"])])
    assert len(model.effects) == 3 and all(effect is not gaussian for effect in model.effects)
    with isolated_rng(0):
        chip, _ = model.apply_programming_noise(torch.ones(2, 2))
    assert not torch.equal(chip, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("effects", "error", "message"),
    [
        ([], NabnError, "effects must be a list of at least one noise model"),
        ("pcm", NabnError, "effects must be a list"),
        (dict(type="pcm"), NabnError, "effects must be a list"),
        ([3], NabnError, "an effect must be a WeightNoiseModel, a name or"),
        ([{"p_off": 1}], NabnError, "an effect must say which it is"),
        (["pmc"], UnknownNameError, "unknown noise model 'pmc', did you mean 'pcm'"),
        ([dict(type="stuck", p_of=1)], NabnError, "StuckDevices has no option 'p_of', did you mean 'p_off'"),
        ([dict(type="stuck", p_off=2)], NabnError, "p_off must be"),
    ],
)
def test_what_cannot_be_composed_is_refused(effects, error, message):
    with pytest.raises(error, match=message):
        ComposedNoise(effects)
