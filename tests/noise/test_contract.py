"""What every registered noise model must do: registering is enrolling."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings

import pytest
import torch
from aihwkit.nn import AnalogConv2d, AnalogLinear
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise import NOISE_MODELS, WeightNoiseModel
from aihwkit_nabn.noise.runtime import HoldingNoise
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator.config.presets import build_preset, get_preset
from tests.chips import aged
from tests.tensors import equal

SHAPES = [(4, 6), (1, 7), (5, 1), (1, 1), (3,), (2, 3, 4), (0, 4), (4, 0)]

pytestmark = pytest.mark.parametrize("name", NOISE_MODELS.names())


def weights_of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def times_of(name: str) -> list[float]:
    low, high = getattr(NOISE_MODELS.get(name), "t_range_s", (0.0, math.inf))
    return sorted({low, max(low, 1.0), min(high, 3600.0), min(high, 1e8)})


def chip_of(name: str, weights: torch.Tensor, seed: int, t_inference: float | None = None, **options: float):
    return aged(NOISE_MODELS.get(name)(**options), weights, t_inference, seed)[0]


def off(name: str) -> dict[str, float]:
    return {NOISE_MODELS.get(name).strength: 0}


def many_faults(name: str, factor: float = 10.0) -> dict[str, float]:
    """Return options under which small layers have faults too."""
    model_class = NOISE_MODELS.get(name)
    return {model_class.strength: factor} if issubclass(model_class, HoldingNoise) else {}


def test_zero_strength_is_the_identity(name):
    weights = weights_of(16, 32)
    assert torch.equal(chip_of(name, weights, 0, **off(name)), weights)
    for t_inference in times_of(name):
        assert torch.equal(chip_of(name, weights, 0, t_inference, **off(name)), weights)


def test_small_strength_does_little(name):
    model_class = NOISE_MODELS.get(name)
    weights = weights_of(16, 32)
    if issubclass(model_class, HoldingNoise):  # faults do not become small but rare
        chip = chip_of(name, weights, 0, times_of(name)[1], **many_faults(name, 0.5))
        assert 0 < (chip != weights).float().mean() < 0.1
        return
    small = 1e-4 * getattr(model_class(), model_class.strength)
    chip = chip_of(name, weights, 0, times_of(name)[1], **{model_class.strength: small})
    assert 0 < (chip - weights).abs().max() < 1e-2


def test_same_seed_same_chip_and_new_seed_new_chip(name):
    weights = weights_of(16, 32)
    assert torch.equal(chip_of(name, weights, 3), chip_of(name, weights, 3))
    assert not torch.equal(chip_of(name, weights, 3), chip_of(name, weights, 4))


def test_tiles_programmed_in_turn_differ(name):
    weights = weights_of(16, 32)
    model = NOISE_MODELS.get(name)()
    with isolated_rng(0):
        first, _ = model.apply_programming_noise(weights)
        second, _ = model.apply_programming_noise(weights)
    assert not torch.equal(first, second)


def test_drift_is_reproducible_at_every_allowed_time(name):
    weights = weights_of(16, 32)
    model = NOISE_MODELS.get(name)()
    with isolated_rng(0):
        programmed, state = model.apply_programming_noise(weights)
    kept = programmed.clone(), copy.deepcopy(state)
    for t_inference in times_of(name):
        chips = []
        for _ in range(2):
            with isolated_rng(1):
                chips.append(model.apply_drift_noise(programmed, state, t_inference))
        assert torch.equal(*chips)
        assert torch.isfinite(chips[0]).all()
    assert torch.equal(programmed, kept[0])
    for now, before in zip(state, kept[1], strict=True):
        assert equal(now, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_shapes_keep_their_shape_and_the_input(name, shape):
    weights = weights_of(*shape)
    before = weights.clone()
    for t_inference in (None, times_of(name)[1]):
        chip = chip_of(name, weights, 0, t_inference)
        assert chip.shape == weights.shape and chip.dtype == weights.dtype
        assert torch.isfinite(chip).all()
    assert torch.equal(weights, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_is_kept(name, dtype):
    weights = weights_of(8, 8, dtype=dtype)
    for t_inference in (None, times_of(name)[1]):
        chip = chip_of(name, weights, 0, t_inference)
        assert chip.dtype == dtype and torch.isfinite(chip).all()


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 1e-12])
def test_weights_that_are_all_equal_stay_finite(name, value):
    weights = torch.full((4, 5), value)
    for t_inference in (None, *times_of(name)):
        assert torch.isfinite(chip_of(name, weights, 0, t_inference)).all()
    if value == 0.0:
        assert chip_of(name, weights, 0).abs().max() < 1e-6


@pytest.mark.parametrize("t_inference", [-1.0, -1e-9, math.nan, math.inf, "1d", None, True])
def test_impossible_times_are_refused(name, t_inference):
    model = NOISE_MODELS.get(name)()
    weights = weights_of(4, 4)
    programmed, state = model.apply_programming_noise(weights)
    with pytest.raises(NabnError, match="t_inference must be .* seconds"):
        model.apply_drift_noise(programmed, state, t_inference)
    with pytest.raises(NabnError, match="t_inference"):
        model.apply_noise(weights, t_inference)


def test_times_beyond_the_fit_are_refused(name):
    high = NOISE_MODELS.get(name).t_range_s[1]
    if math.isfinite(high):
        with pytest.raises(NabnError, match=re.escape(f"{high:g} seconds")):
            NOISE_MODELS.get(name)().check_time(high * 1.001)


def test_apply_noise_at_zero_is_programming_alone(name):
    weights = weights_of(4, 6)
    with isolated_rng(2):
        noisy = NOISE_MODELS.get(name)().apply_noise(weights, 0.0)
    assert torch.equal(noisy, chip_of(name, weights, 2))


def test_nothing_warns(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chip_of(name, weights_of(8, 8), 0, times_of(name)[-1])


def test_models_print_compare_and_copy(name):
    model_class = NOISE_MODELS.get(name)
    model = model_class()
    model.layer_max = torch.ones(3, 1)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model_class()]
    assert all(twin == model for twin in twins)
    assert model != model_class(**off(name))
    for text in (str(model), repr(model)):
        assert text.startswith(f"{model_class.__name__}(") and "tensor" not in text and "layer_max" not in text
    assert eval(repr(model), {model_class.__name__: model_class}) == model


def test_preset_exists_and_survives_copies(name):
    preset = build_preset(name, **off(name))
    assert type(preset) is get_preset(name)
    for twin in (copy.deepcopy(preset), pickle.loads(pickle.dumps(preset))):
        assert type(twin) is type(preset)
        assert twin.noise_model == preset.noise_model and twin.noise_model is not preset.noise_model
        assert str(twin) == str(preset)


@pytest.mark.parametrize("layer_class", [AnalogLinear, AnalogConv2d])
def test_plain_aihwkit_layers_program_and_drift(name, layer_class):
    if layer_class is AnalogLinear:
        digital, image = torch.nn.Linear(12, 5), weights_of(3, 12)
    else:
        digital, image = torch.nn.Conv2d(2, 5, 3, padding=1), weights_of(3, 2, 6, 6)
    preset = build_preset(name, **many_faults(name))
    preset.mapping.max_input_size, preset.mapping.max_output_size = 8, 8
    analog = layer_class.from_digital(digital, preset).eval()
    tiles = list(analog.analog_tiles())
    assert len(tiles) > 1 and all(isinstance(tile, TorchInferenceTile) for tile in tiles)
    assert len({id(tile.rpu_config.noise_model) for tile in tiles}) == len(tiles)
    clean = analog(image)
    assert torch.allclose(clean, digital(image), atol=1e-5)
    outputs = []
    for seed in (0, 0, 1):
        with isolated_rng(seed):
            analog.program_analog_weights()
            analog.drift_analog_weights(times_of(name)[1])
        outputs.append(analog(image))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.isfinite(outputs[0]).all() and not torch.equal(outputs[0], clean)


def test_zero_strength_leaves_the_tile_bit_for_bit(name):
    analog = AnalogLinear.from_digital(torch.nn.Linear(12, 5), build_preset(name, **off(name))).eval()
    tile = next(analog.analog_tiles())
    before = tile.tile.get_weights().clone()
    analog.program_analog_weights()
    analog.drift_analog_weights(times_of(name)[-1])
    assert torch.equal(tile.tile.get_weights(), before)


def test_a_drifted_layer_survives_a_deep_copy(name):
    analog = AnalogLinear.from_digital(torch.nn.Linear(12, 5), build_preset(name)).eval()
    analog.program_analog_weights()
    twin = copy.deepcopy(analog)
    image = weights_of(3, 12)
    outputs = []
    for layer in (analog, twin):
        with isolated_rng(5):
            layer.drift_analog_weights(times_of(name)[1])
        outputs.append(layer(image))
    assert torch.equal(*outputs)


def test_layer_max_of_a_wrong_shape_is_refused(name):
    model = NOISE_MODELS.get(name)()
    assert isinstance(model, WeightNoiseModel)
    model.layer_max = torch.ones(7, 1)
    with pytest.raises(NabnError, match="layer_max must be a scalar or"):
        model.apply_programming_noise(weights_of(4, 6))
