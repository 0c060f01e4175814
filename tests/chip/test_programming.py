from __future__ import annotations

import copy
import math

import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.nn import AnalogConv2d
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.optim import AnalogSGD
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.chip import chip_state
from aihwkit_nabn.errors import ConversionError, NabnError, NotProgrammedError
from aihwkit_nabn.nn import named_analog_layers
from tests.chips import tiled
from tests.tensors import equal, generator_states, tensors_of

TIMES = (0.0, "1h", 1e7)


def gaussian(n_in=512, n_out=512, **options):
    return tiled(nabn.presets.GaussianWeightNoisePreset(**options), n_in, n_out)


def pcm(n_in=16, n_out=7):
    return tiled("pcm", n_in, n_out)


def bits(model):
    """Everything a forward pass reads of the tiles."""
    state = {}
    for name, layer in named_analog_layers(model).items():
        for tile_name, tile in layer.named_analog_tiles():
            state[name, tile_name] = (tile.tile.get_weights().clone(), tile.alpha.clone())
    return state


@pytest.fixture(params=[gaussian, pcm], ids=["gaussian", "pcm"])
def analog(request, net):
    return nabn.convert_to_noise_aware(net, request.param())


def test_same_seed_same_chip_whatever_ran_before(analog, images):
    nabn.program_chip(analog, seed=5, t_inference="1h")
    first = bits(analog)
    torch.manual_seed(99)
    for seed in (7, 0, 6):
        nabn.program_chip(analog, seed=seed, t_inference=100.0)
        assert not equal(bits(analog), first)
        analog(images(2))
    assert nabn.program_chip(analog, seed=5, t_inference="1h") is analog
    assert equal(bits(analog), first)
    assert chip_state(analog).seed == 5 and chip_state(analog).t_inference == 3600.0


def test_seeds_differ_and_their_order_does_not_matter(analog):
    chips = {seed: bits(nabn.program_chip(analog, seed=seed)) for seed in (0, 1, 2)}
    again = {seed: bits(nabn.program_chip(analog, seed=seed)) for seed in (2, 0, 1)}
    assert all(equal(chips[seed], again[seed]) for seed in chips)
    assert not equal(chips[0], chips[1]) and not equal(chips[1], chips[2])


def test_a_second_conversion_gives_the_same_chip(net):
    chips = [nabn.program_chip(nabn.convert_to_noise_aware(net, pcm()), seed=4, t_inference="1d") for _ in range(2)]
    assert equal(*map(bits, chips))


def test_programming_really_starts_from_the_digital_weights_each_time(net, relative):
    """The mean over chips comes back to the digital weights; noise upon noise would spread as the root of the count."""
    analog = nabn.convert_to_noise_aware(net, gaussian(sigma=0.1, relative_to="max"))
    weights = torch.stack([nabn.program_chip(analog, seed=seed).head.weight.clone() for seed in range(100)])
    sigma = 0.1 * net.head.weight.detach().abs().max()
    standard_error = sigma / 10 / math.sqrt(weights[0].numel())
    assert abs((weights.mean(0) - net.head.weight).mean()) < 4 * standard_error
    assert weights.std(0).square().mean().sqrt() == pytest.approx(float(sigma), rel=4 / math.sqrt(2 * 30 * 99))


def test_the_global_generators_stay_where_they_were(net, images):
    analog = nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset(forward=IOParameters(out_noise=0.1)))
    before = generator_states()
    nabn.convert_to_noise_aware(net, pcm())
    nabn.program_chip(analog, seed=1, t_inference="1h")
    nabn.drift_chip(analog, "1d")
    analog(images(2))
    for method in CALIBRATION_METHODS.names():
        options = {"steps": 2} if method == "distill" else {}
        nabn.calibrate(analog, [images(4)], method, reference=net, **options)
        analog(images(2))
    assert generator_states() == before


def test_drifting_keeps_the_chip(analog):
    at = {time: bits(nabn.program_chip(analog, seed=2, t_inference=time)) for time in TIMES}
    nabn.program_chip(analog, seed=2)
    for time in (1e7, "1h", 0.0, 1e7):
        nabn.drift_chip(analog, time)
        assert equal(bits(analog), at[time])
        assert chip_state(analog).seed == 2
    assert chip_state(analog).t_inference == 1e7


def test_pcm_weights_fade_and_the_compensation_makes_up(net):
    analog = nabn.convert_to_noise_aware(net, pcm())
    fresh = nabn.program_chip(analog, seed=0, t_inference=20.0).pointwise.weight
    old = nabn.drift_chip(analog, "1y").pointwise.weight
    tile = next(analog.pointwise.analog_tiles())
    assert tile.alpha > 1.2
    assert old.norm() == pytest.approx(float(fresh.norm()), rel=0.05)


def test_the_drift_factor_is_not_stale_after_programming_again(net):
    analog = nabn.convert_to_noise_aware(net, pcm())
    nabn.program_chip(analog, seed=0)
    fresh = bits(analog)
    nabn.drift_chip(analog, "10y")
    nabn.program_chip(analog, seed=0)
    assert equal(bits(analog), fresh)
    for tile in analog.head.analog_tiles():
        assert tile.alpha == pytest.approx(1.0, abs=0.02)


def test_a_layers_noise_does_not_depend_on_the_others(net):
    whole = nabn.program_chip(nabn.convert_to_noise_aware(net, pcm()), seed=3, t_inference="1h")
    alone = nabn.convert_to_noise_aware(net, pcm(), exclude=("stem", "grouped", "depthwise", "row", "head"))
    nabn.program_chip(alone, seed=3, t_inference="1h")
    assert list(named_analog_layers(alone)) == ["pointwise"]
    assert torch.equal(alone.pointwise.weight, whole.pointwise.weight)
    bare = nn.ModuleDict({"pointwise": copy.deepcopy(net.pointwise)})
    bare = nabn.program_chip(nabn.convert_to_noise_aware(bare, pcm()), seed=3, t_inference="1h")
    assert torch.equal(bare["pointwise"].weight, whole.pointwise.weight)


def test_layers_and_tiles_draw_apart(net):
    twins = nn.ModuleDict({"a": nn.Linear(40, 8), "b": nn.Linear(40, 8)})
    twins["b"].load_state_dict(twins["a"].state_dict())
    with torch.no_grad():
        twins["a"].weight[:, 20:] = twins["a"].weight[:, :20]
        twins["b"].weight.copy_(twins["a"].weight)
    analog = nabn.program_chip(nabn.convert_to_noise_aware(twins, gaussian(20, 8)), seed=0)
    assert not torch.equal(analog["a"].weight, analog["b"].weight)
    assert not torch.equal(analog["a"].weight[:, :20], analog["a"].weight[:, 20:])


@pytest.mark.parametrize("columnwise", [False, True])
def test_noise_relative_to_the_layers_maximum_whatever_the_tiling(columnwise):
    """One large weight decides the noise of every tile, also of those that do not hold it."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 80, bias=False)
    with torch.no_grad():
        layer.weight.mul_(0.2 / layer.weight.abs().max())
        layer.weight[0, 0] = 2.0
    expected = 0.05 * 2.0
    standard_error = expected / math.sqrt(2 * 95 * 79)
    for tiles in ((512, 512), (33, 17), (10, 100)):
        rpu_config = gaussian(*tiles, sigma=0.05, relative_to="max")
        if columnwise:
            rpu_config.mapping.weight_scaling_omega, rpu_config.mapping.weight_scaling_columnwise = 1.0, True
        analog = nabn.program_chip(nabn.convert_to_noise_aware(layer, rpu_config), seed=1)
        noise = (analog.weight - layer.weight.detach())[1:, 1:]
        assert abs(noise.std() - expected) < 4 * standard_error
        halves = noise[:40], noise[40:]
        assert all(abs(half.std() - expected) < 4 * standard_error * 2**0.5 for half in halves)


def test_a_layer_of_zeros_and_a_column_of_zeros():
    model = nn.ModuleDict({"zeros": nn.Linear(4, 3), "column": nn.Linear(4, 3)})
    with torch.no_grad():
        model["zeros"].weight.zero_()
        model["column"].weight[1].zero_()
    for rpu_config in (gaussian(relative_to="max"), pcm()):
        analog = nabn.program_chip(nabn.convert_to_noise_aware(model, rpu_config), seed=0, t_inference="1d")
        assert all(torch.isfinite(layer.weight).all() for layer in analog.values())


OPTIMIZERS = {
    "torch": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "aihwkit": lambda model: AnalogSGD(model.parameters(), lr=0.1),
}


def train(model, make_optimizer, images):
    model.train()
    optimizer = make_optimizer(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(images(4)).square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("copied", [False, True], ids=["same object", "deep copy"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_trained_weights_are_the_ones_programmed_next(net, images, optimizer, copied):
    analog = nabn.convert_to_noise_aware(net, gaussian(16, 7, sigma=0.1))
    nabn.program_chip(analog, seed=0)
    train(analog, OPTIMIZERS[optimizer], images)
    if copied:
        analog = copy.deepcopy(analog)
    trained = analog.head.weight.clone()
    with pytest.raises(NotProgrammedError, match="was trained after it was programmed; call program_chip again"):
        nabn.drift_chip(analog, "1h")
    weights = torch.stack([nabn.program_chip(analog, seed=seed).head.weight.clone() for seed in range(40)])
    sigma = 0.1 * trained.abs().max()
    assert (weights.mean(0) - trained).abs().max() < 4.5 * sigma / math.sqrt(40)
    assert (trained - net.head.weight).abs().max() > 0


def test_a_copy_of_a_chip_is_programmed_from_the_digital_weights(net):
    analog = nabn.convert_to_noise_aware(net, gaussian(16, 7, sigma=0.3))
    expected = bits(nabn.program_chip(analog, seed=1))
    nabn.program_chip(analog, seed=0)
    for _ in range(3):
        analog = copy.deepcopy(analog)
        nabn.program_chip(analog, seed=1)
        assert equal(bits(analog), expected)


def test_aihwkits_own_drift_in_between_is_not_taken_for_training(net):
    model = convert_to_analog(nn.Sequential(nn.Linear(5, 4)), pcm()).eval()
    expected = bits(nabn.program_chip(model, seed=1))
    model.drift_analog_weights(1e6)
    assert equal(bits(nabn.program_chip(model, seed=1)), expected)
    model.program_analog_weights()
    assert equal(bits(nabn.program_chip(model, seed=1)), expected)


def test_an_interruption_is_not_taken_for_training(net, monkeypatch):
    analog = nabn.convert_to_noise_aware(net, pcm())
    expected = bits(nabn.program_chip(analog, seed=1))
    tiles = [tile for layer in named_analog_layers(analog).values() for tile in layer.analog_tiles()]

    def interrupt(t_inference):
        raise KeyboardInterrupt

    for method in ("program_weights", "drift_weights"):
        with monkeypatch.context() as patch:
            patch.setattr(tiles[len(tiles) // 2], method, interrupt)
            with pytest.raises((KeyboardInterrupt, TypeError)):
                nabn.program_chip(analog, seed=2)
        with pytest.raises(NotProgrammedError):
            chip_state(analog)
        assert equal(bits(nabn.program_chip(analog, seed=1)), expected)


@pytest.mark.parametrize("seed", [2**63, 2**64, 10**30])
def test_seeds_may_be_of_any_size(analog, seed):
    drifted = bits(nabn.program_chip(analog, seed, "1d"))
    nabn.set_read_noise_seed(analog, seed)
    assert chip_state(analog).seed == seed
    assert equal(bits(nabn.drift_chip(nabn.program_chip(analog, seed), "1d")), drifted)


@pytest.mark.parametrize("seed", [-1, 1.5, 2.0, True, None, "3", math.nan])
def test_impossible_seeds(chip, seed):
    before = bits(chip)
    for function in (nabn.program_chip, nabn.set_read_noise_seed):
        with pytest.raises(NabnError, match="seed must be an integer >= 0, got "):
            function(chip, seed)
    assert equal(bits(chip), before) and chip_state(chip).seed == 3


@pytest.mark.parametrize("time", [-1.0, math.nan, math.inf, "yesterday", None])
def test_impossible_times(chip, time):
    before = bits(chip)
    with pytest.raises(NabnError, match="time must be seconds >= 0"):
        nabn.program_chip(chip, 4, time)
    with pytest.raises(NabnError, match="time must be seconds >= 0"):
        nabn.drift_chip(chip, time)
    assert equal(bits(chip), before) and chip_state(chip).t_inference == 0.0


def test_times_beyond_a_noise_models_range_change_nothing(net):
    analog = nabn.convert_to_noise_aware(net, nabn.presets.ReRAMWanPreset())
    low, high = type(next(analog.head.analog_tiles()).rpu_config.noise_model).t_range_s
    nabn.program_chip(analog, seed=0, t_inference=low)
    before = bits(analog)
    for call in (lambda: nabn.program_chip(analog, 1, high * 2), lambda: nabn.drift_chip(analog, high * 2)):
        with pytest.raises(NabnError, match="layer 'stem.0': t_inference must be "):
            call()
        assert equal(bits(analog), before) and chip_state(analog).seed == 0


def test_not_programmed(net, images):
    analog = nabn.convert_to_noise_aware(net, gaussian())
    for call in (lambda: nabn.drift_chip(analog, 1.0), lambda: chip_state(analog)):
        with pytest.raises(NotProgrammedError, match="holds no chip yet; call program_chip"):
            call()
    for call in (nabn.program_chip, nabn.drift_chip):
        with pytest.raises(NabnError):
            call(net, 0)
    with pytest.raises(ConversionError, match="SmallNet has no layer on inference tiles; convert it with"):
        nabn.program_chip(net, 0)
    with pytest.raises(ConversionError, match="str has no layer"):
        nabn.program_chip("net", 0)


def test_programming_removes_the_calibration_of_the_chip_before(chip, net, images):
    x = images(3)
    before = chip(x)
    for method in ("paired", "population", "batch", "online"):
        nabn.calibrate(chip, [images(4)], method, reference=net)
        assert not torch.equal(chip(x), before)
        nabn.program_chip(chip, seed=3)
        assert torch.equal(chip(x), before)
    nabn.calibrate(chip, [images(4)], reference=net)
    calibrated = chip(x)
    nabn.drift_chip(chip, "1h")  # Gaussian noise does not drift
    assert torch.equal(chip(x), calibrated)


def own(model, config):
    return convert_to_analog(model, config).eval()


READ_NOISE = {
    "ours": (nabn.convert_to_noise_aware, lambda: nabn.presets.PCMPreset(forward=IOParameters(out_noise=0.1))),
    "aihwkit": (own, lambda: TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel())),
}


@pytest.mark.parametrize("kind", READ_NOISE)
def test_read_noise_restarts_with_its_seed(kind, images):
    convert, config = READ_NOISE[kind]
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(140, 3)).eval(), config())
    nabn.program_chip(model, seed=1)
    x = images(2)
    before, state = generator_states(), torch.get_rng_state()
    first, second = model(x), model(x)
    assert not torch.equal(first, second)
    nabn.program_chip(model, seed=1)
    assert torch.equal(model(x), first)
    nabn.set_read_noise_seed(model, 11)
    other = model(x)
    assert not torch.equal(other, first)
    torch.manual_seed(77)
    nabn.set_read_noise_seed(model, 11)
    twin = copy.deepcopy(model)
    assert torch.equal(model(x), other) and torch.equal(twin(x), other)
    torch.set_rng_state(state)
    with pytest.raises(Exception, match="shape|size"):
        model(images(2, shape=(2, 9, 7)))
    assert generator_states() == before
    assert torch.isfinite(model(x)).all()


def test_models_of_aihwkits_own_conversion(images):
    torch.manual_seed(0)
    model = own(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), pcm())
    assert isinstance(model[0], AnalogConv2d)
    assert equal(bits(nabn.program_chip(model, 3, "1d")), bits(nabn.program_chip(copy.deepcopy(model), 3, "1d")))


def test_compiled_tiles(images, relative):
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(140, 3)).eval()
    config = InferenceRPUConfig(noise_model=PCMLikeNoiseModel(), forward=IOParameters(is_perfect=True))
    try:
        model = own(digital, config)
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"aihwkit's compiled tile does not construct here: {error}")
    nabn.program_chip(model, seed=1, t_inference="1h")
    first = bits(model)
    nabn.program_chip(model, seed=2)
    assert not equal(bits(model), first)
    nabn.program_chip(copy.deepcopy(model), seed=2)
    nabn.program_chip(model, seed=1, t_inference="1h")
    assert equal(bits(model), first)
    uncalibrated = relative(model(images(8)), digital(images(8)))
    nabn.calibrate(model, [images(8)], reference=digital)
    assert relative(model(images(8)), digital(images(8))) < uncalibrated
    train(model, OPTIMIZERS["aihwkit"], images)
    trained = model[3].get_weights()[0].clone()
    nabn.program_chip(model, seed=1)
    reference = [tile.reference_combined_weights for tile in model[3].analog_tiles()]
    assert torch.allclose(reference[0], trained)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_name_their_layer_and_change_nothing(net, value: float) -> None:
    analog = nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset())
    nabn.program_chip(analog, 1, "1h")
    tile = next(iter(named_analog_layers(analog)["pointwise"].analog_tiles()))
    good = tile.tile.get_weights().clone()
    before = tensors_of(analog)
    bad = good.clone()
    bad[0, 1] = value
    tile.set_weights(bad)
    with pytest.raises(NabnError, match="weights of layer 'pointwise' hold NaN or infinite"):
        nabn.program_chip(analog, 2)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in tensors_of(analog).items() if "pointwise" not in name
    )
    tile.set_weights(good)
    nabn.program_chip(analog, 2)
