"""A noise model of one's own: what is taken in, what is refused and how."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.nn import AnalogLinear

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.noise import NOISE_MODELS, WeightNoiseModel, register_noise_model
from aihwkit_nabn.simulator import presets


class StuckAtZero(WeightNoiseModel):
    """Some devices hold nothing."""

    strength = "probability"

    def __init__(self, probability: float = 0.1) -> None:
        self.probability = probability

    def program(self, weights, w_max, generator):
        return weights * (torch.rand(weights.shape, generator=generator) >= self.probability)


@pytest.fixture
def stuck():
    register_noise_model("stuck_at_zero")(StuckAtZero)
    yield
    NOISE_MODELS.unregister("stuck_at_zero")


def test_a_short_model_gets_a_preset_and_works_on_a_tile(stuck):
    assert "stuck_at_zero" in presets.preset_names()
    preset = presets.parse_preset("stuck_at_zero:probability=1")
    assert type(preset) is presets.StuckAtZeroPreset is presets.get_preset("StuckAtZeroPreset")
    assert preset.drift_compensation is None and preset.mapping.weight_scaling_omega == 0.0
    assert pickle.loads(pickle.dumps(preset)) == copy.deepcopy(preset) == preset
    analog = AnalogLinear.from_digital(torch.nn.Linear(4, 3, bias=False), preset).eval()
    analog.drift_analog_weights(60.0)
    assert torch.equal(analog(torch.ones(1, 4)), torch.zeros(1, 3))


def test_unregistering_takes_the_preset_away(stuck):
    preset = presets.build_preset("stuck_at_zero")
    NOISE_MODELS.unregister("stuck_at_zero")
    try:
        with pytest.raises(UnknownNameError, match="stuck_at_zero"):
            presets.get_preset("stuck_at_zero")
        assert not hasattr(presets, "StuckAtZeroPreset")
        assert copy.deepcopy(preset) == preset
    finally:
        register_noise_model("stuck_at_zero")(StuckAtZero)


def test_registering_leaves_the_global_generators_alone(stuck):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    register_noise_model("stuck_at_zero")(StuckAtZero)
    assert (torch.rand(1), np.random.rand()) == expected


def test_a_model_drawing_from_the_global_generator_still_gives_every_tile_its_own_noise():
    class Careless(StuckAtZero):
        def program(self, weights, w_max, generator):
            return weights + self.probability * torch.randn_like(weights)

    model = Careless()
    torch.manual_seed(0)
    first, _ = model.apply_programming_noise(torch.ones(4, 4))
    second, _ = model.apply_programming_noise(torch.ones(4, 4))
    assert not torch.equal(first, second)


def test_one_of_aihwkits_own_classes_can_be_registered():
    class Bare(PCMLikeNoiseModel):
        strength = "prog_noise_scale"

    register_noise_model("bare_pcm")(Bare)
    try:
        preset = presets.build_preset("bare_pcm", prog_noise_scale=0.5)
        assert preset.noise_model.prog_noise_scale == 0.5 and preset.drift_compensation is not None
    finally:
        NOISE_MODELS.unregister("bare_pcm")


class NoStrength(WeightNoiseModel):
    pass


class WrongStrength(StuckAtZero):
    strength = "probabilty"


class NeedsArgument(StuckAtZero):
    def __init__(self, probability: float) -> None:
        self.probability = probability


class Forgetful(StuckAtZero):
    def __init__(self, probability: float = 0.1) -> None:
        self.p = probability


class NoProgram(WeightNoiseModel):
    strength = "sigma"

    def __init__(self, sigma: float = 0.1) -> None:
        self.sigma = sigma


class WrongShape(StuckAtZero):
    def program(self, weights, w_max, generator):
        return weights.sum(0)


class WrongType(StuckAtZero):
    def program(self, weights, w_max, generator):
        return weights.double()


class NotFinite(StuckAtZero):
    def program(self, weights, w_max, generator):
        return weights / 0.0


class PlainTile(StuckAtZero):
    def program(self, weights, w_max, generator):
        return weights.tolist()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (int, "must be a class derived from WeightNoiseModel"),
        (StuckAtZero(), "must be a class derived from WeightNoiseModel"),
        (NoStrength, "`strength` must name the constructor argument"),
        (BaseNoiseModel, "`strength` must name the constructor argument"),
        (WrongStrength, "got 'probabilty', did you mean 'probability'"),
        (NeedsArgument, r"NeedsArgument\(\) failed without arguments"),
        (Forgetful, "must store its argument 'probability' in self.probability"),
        (NoProgram, "failed on a tile"),
        (WrongShape, "must keep the shape"),
        (WrongType, "must keep the dtype"),
        (NotFinite, "not finite"),
        (PlainTile, "must return a tensor, got list"),
    ],
)
def test_what_cannot_be_a_noise_model_is_refused_by_name(entry, message):
    with pytest.raises(NabnError, match=message) as raised:
        register_noise_model("faulty")(entry)
    assert "faulty" in str(raised.value)
    assert "faulty" not in NOISE_MODELS


def test_taken_names_are_refused(stuck):
    with pytest.raises(NabnError, match="already registered"):
        register_noise_model("pcm")(StuckAtZero)
    with pytest.raises(NabnError, match="lower_snake_case"):
        register_noise_model("My Noise")
    other = type("StuckAtZero", (StuckAtZero,), {"__module__": "elsewhere"})
    with pytest.raises(NabnError, match="has a class named StuckAtZero already"):
        register_noise_model("stuck_too")(other)


def test_an_argument_named_like_a_config_field_is_explained():
    class Clashing(StuckAtZero):
        def __init__(self, probability: float = 0.1, mapping: int = 1) -> None:
            self.probability, self.mapping = probability, mapping

    register_noise_model("clashing")(Clashing)
    try:
        with pytest.raises(NabnError, match="its argument 'mapping' is a field of RPU configs"):
            presets.get_preset("clashing")
    finally:
        NOISE_MODELS.unregister("clashing")
