from __future__ import annotations

import copy

import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn import NoiseAwareBatchNorm, OutputAlignment, named_analog_layers
from tests.chips import chip_of, tiled
from tests.tensors import equal, tensors_of

METHODS = ("paired", "common_mode", "low_rank", "auto", "distill", "population", "prior", "online")

PRESETS = {
    "plain": lambda: nabn.presets.GaussianWeightNoisePreset(sigma=0.1),
    "scaled, compensated": lambda: nabn.presets.PCMPreset(),
    "unfolded": lambda: nabn.presets.PCMPreset(
        forward=IOParameters(inp_res=-1.0, out_res=-1.0, inp_bound=100.0, out_bound=1e4, out_noise=0.0)
    ),
}


def state(model):
    return tensors_of(model), list(model.state_dict())


@pytest.fixture(params=PRESETS)
def chip(request, net):
    """On tiles of several kinds."""
    return chip_of(net, tiled(PRESETS[request.param]()))


def calibrate(model, net, batches, method):
    options = {"reference": net} if CALIBRATION_METHODS.get(method).needs_reference else {}
    if method == "distill":
        options["steps"] = 3
    report = nabn.calibrate(model, batches, method, **options)
    report.freeze()
    return report


@pytest.mark.parametrize("method", METHODS)
def test_folding_keeps_the_outputs_and_leaves_nothing_to_do(chip, net, batches, images, relative, method):
    uncalibrated = state(chip)
    report = calibrate(chip, net, batches, method)
    x = images(5, 40)
    calibrated, before = chip(x), state(chip)
    handle = nabn.fold_calibration(chip)
    assert relative(chip(x), calibrated) < 2e-6
    for module in chip.modules():
        if isinstance(module, OutputAlignment):
            # Only an input gain has no other place to go.
            assert module.scale is None and module.offset is None
            assert module.input_gain is None or method == "common_mode"
        if isinstance(module, NoiseAwareBatchNorm):
            assert not module.is_calibrated
    handle.undo()
    assert equal(state(chip), before) and torch.equal(chip(x), calibrated)
    report.undo()
    assert equal(state(chip), uncalibrated)


@pytest.mark.parametrize("method", ["paired", "population"])
def test_programming_a_folded_chip_gives_a_fresh_one(chip, net, batches, method):
    fresh = copy.deepcopy(chip)
    calibrate(chip, net, batches, method)
    nabn.fold_calibration(chip)
    for seed in (5, 3):
        nabn.program_chip(chip, seed=seed, t_inference="1d")
        nabn.program_chip(fresh, seed=seed, t_inference="1d")
        assert equal(state(chip), state(fresh))


@pytest.mark.parametrize("method", ["paired", "population"])
def test_what_a_folded_chip_refuses(chip, net, batches, images, method):
    calibrate(chip, net, batches, method)
    nabn.fold_calibration(chip)
    before, x = state(chip), images(3)
    out = chip(x)
    with pytest.raises(CalibrationError, match="holds a folded calibration; undo the fold or program the chip again"):
        with nabn.calibration_disabled(chip):
            pass
    with pytest.raises(CalibrationError, match="holds a folded calibration"):
        nabn.fold_calibration(chip)
    for other in ("paired", "ema"):
        with pytest.raises(CalibrationError, match="holds a folded calibration"):
            nabn.calibrate(chip, batches, other, reference=net)
    assert equal(state(chip), before) and torch.equal(chip(x), out)


def test_a_folded_chip_drifts_on_and_can_be_copied(chip, net, batches, images, relative):
    calibrate(chip, net, batches, "paired")
    plain = copy.deepcopy(chip)
    nabn.fold_calibration(chip)
    twin = copy.deepcopy(chip)
    x = images(5, 40)
    assert torch.equal(twin(x), chip(x))
    for model in (plain, chip, twin):
        nabn.drift_chip(model, "1y")
    assert relative(chip(x), plain(x)) < 2e-6 and torch.equal(twin(x), chip(x))
    nabn.clear_calibration(twin)
    nabn.clear_calibration(plain)
    assert torch.equal(twin(x), plain(x)) and not torch.equal(chip(x), plain(x))


@pytest.mark.parametrize("method", ["batch", "online"])
def test_live_statistics_must_be_frozen_first(chip, method, images):
    nabn.calibrate(chip, [images(4)], method)
    with pytest.raises(CalibrationError, match="BatchNorm 'stem.1' follows its inputs; call freeze_calibration"):
        nabn.fold_calibration(chip)
    nabn.freeze_calibration(chip)
    nabn.fold_calibration(chip)


def test_what_is_switched_off_is_not_folded(chip, net, batches, images):
    x = images(3)
    uncalibrated = chip(x)
    calibrate(chip, net, batches, "paired")
    with nabn.calibration_disabled(chip):
        nabn.fold_calibration(chip)
        assert torch.equal(chip(x), uncalibrated)
    assert chip.head.alignment.is_set


def test_aihwkits_own_layers_without_a_bias_cannot_be_folded(images):
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(140, 2, bias=False)).eval()
    config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel(), forward=IOParameters(is_perfect=True))
    model = nabn.program_chip(convert_to_analog(digital, config).eval(), seed=0)
    nabn.calibrate(model, [images(4)], "common_mode", reference=digital)
    before, out = state(model), model(images(2))
    with pytest.raises(CalibrationError, match="layer '2' is aihwkit's AnalogLinear without a digital bias"):
        nabn.fold_calibration(model)
    assert equal(state(model), before) and torch.equal(model(images(2)), out)


def test_clearing_and_freezing_what_is_not_there(chip, images):
    x = images(2)
    before = chip(x)
    nabn.clear_calibration(chip)
    nabn.freeze_calibration(chip)
    nabn.fold_calibration(chip).undo()
    assert torch.equal(chip(x), before)


def test_frozen_batch_statistics_go_back_to_the_trained_ones(chip, images):
    x = images(4)
    before = chip(x)
    nabn.calibrate(chip, None, "batch").freeze()
    assert torch.equal(chip(x), before)


def test_a_calibrated_layer_becomes_a_digital_one(chip, net, batches, images, relative):
    calibrate(chip, net, batches, "paired")
    inputs = {}
    for name, layer in named_analog_layers(chip).items():
        layer.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, (args[0], out)))
    chip(images(3))
    for name, layer in named_analog_layers(chip).items():
        digital = type(layer).to_digital(layer)
        x, out = inputs[name]
        assert relative(digital(x), out) < 1e-5
        assert isinstance(digital, (nn.Conv2d, nn.Conv1d, nn.Linear))
    with nabn.calibration_disabled(chip):
        digital = type(chip.head).to_digital(chip.head)
        assert torch.equal(digital.weight, chip.head.weight)
