"""The method that takes out what follows a layer's input mean, against least squares over everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS, Moments
from aihwkit_nabn.calibration.pair_moments import JointMoments, Pair
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn import named_analog_layers
from aihwkit_nabn.nn.calibration_tensors import calibration_tensors, load_calibration_tensors
from tests.chips import chip_of

CommonMode, Paired = CALIBRATION_METHODS.get("common_mode"), CALIBRATION_METHODS.get("paired")


def pair_of(analog, digital, common):
    """All arrays ``[values, channels]``."""
    a, d, m = (torch.tensor(x) for x in (analog, digital, common))
    joint = JointMoments.empty(a.shape[1], a.device, 3)
    joint.add(a.t(), d.t(), m.t())
    return Pair(Moments.of(d, -1), Moments.of(a, -1), joint, Moments.of(m, -1))


def signals(n=20_000, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    common = rng.normal(2.0, 0.5, (n, 3))
    digital = rng.normal(1.0, 2.0, (n, 3)) + common * [0.0, 1.0, -2.0]
    analog = 0.7 * digital + common * [1.5, -0.8, 0.0] + 0.3 + noise * rng.normal(size=(n, 3))
    return analog, digital, common


def by_hand(analog, digital, common, shrink):
    """Scale, offset and gain of one channel, from numpy's least squares."""
    columns = np.stack([digital, common, np.ones(len(analog))], 1)
    share = np.linalg.lstsq(columns, analog, rcond=None)[0][1]
    left = analog - share * common
    scale = digital.std() / left.std() * np.corrcoef(left, digital)[0, 1] ** shrink
    return scale, digital.mean() - scale * left.mean(), -scale * share


@pytest.mark.parametrize("shrink", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noise", [0.01, 0.3, 2.0])
def test_the_rule(shrink, noise):
    """The common part is held back by a thousandth."""
    arrays = signals(noise=noise)
    vectors = CommonMode(shrink=shrink).rule(pair_of(*arrays))
    for c in range(3):
        expected = by_hand(*(x[:, c] for x in arrays), shrink)
        np.testing.assert_allclose([v[c] for v in vectors], expected, atol=0.02)


def test_noise_drawn_anew_is_not_taken_for_a_common_part():
    """Reference and mean go together, the chip's output is the reference's plus noise: three standard errors of 0."""
    rng = np.random.default_rng(0)
    common = rng.normal(2.0, 1.0, (20_000, 3))
    digital = common + 0.5 * rng.normal(size=common.shape)
    analog = digital + 3.0 * rng.normal(size=common.shape)
    scale, _, gain = CommonMode(shrink=0.0).rule(pair_of(analog, digital, common))
    error = 3.0 / np.sqrt(len(common)) / 0.45  # of the regression: noise over what the mean has for itself
    assert (gain.abs() / scale < 3.0 * error).all()


def test_better_than_paired_where_there_is_a_common_part():
    analog, digital, common = signals()
    scale, offset, gain = (v.numpy() for v in CommonMode().rule(pair_of(analog, digital, common)))
    plain_scale, plain_offset = (v.numpy() for v in Paired().rule(pair_of(analog, digital, common)))
    errors = np.square(scale * analog + gain * common + offset - digital).mean(0)
    plain = np.square(plain_scale * analog + plain_offset - digital).mean(0)
    assert (errors[:2] < 0.7 * plain[:2]).all() and errors[2] == pytest.approx(plain[2], rel=0.01)


def test_signals_that_say_nothing():
    """A mean, a chip or a reference that does not vary, one value alone, and outputs against the reference's."""
    analog, digital, common = signals(n=200)
    common[:, 0], analog[:, 1], digital[:, 2] = 2.0, 0.3, 0.7
    scale, offset, gain = CommonMode().rule(pair_of(analog, digital, common))
    plain = Paired().rule(pair_of(analog, digital, common))
    assert all(torch.isfinite(v).all() for v in (scale, offset, gain))
    assert gain[0] == gain[1] == gain[2] == 0.0
    torch.testing.assert_close((scale, offset), plain)
    for vectors in (
        CommonMode().rule(pair_of(*(x[:1] for x in signals()))),
        CommonMode().rule(pair_of(-digital, digital, common)),
    ):
        assert all(torch.isfinite(v).all() for v in vectors) and (vectors[0] >= 0).all()


class Positive(nn.Module):
    """Layers of every kind behind a ReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, stride=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 9, 3, stride=2)
        self.tokens = nn.Linear(9, 10)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = self.depthwise(self.grouped(x).relu()).relu()
        return self.head(self.tokens(self.up(x).relu().flatten(2).transpose(1, 2)).relu().amax(1))


TAKE_PART = {"first", "grouped", "up", "tokens"}


@pytest.fixture
def positive(settle):
    torch.manual_seed(0)
    net = Positive()
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim() > 1):
            parameter.mul_(3.0)  # what goes through should not fade away
    return settle(net)


def add_to_rows(chip, net, share):
    """Put the reference's weights on the chip, each row plus a constant of its own."""
    for name, layer in named_analog_layers(chip).items():
        weight = net.get_submodule(name).weight.detach()
        generator = torch.Generator().manual_seed(len(name))
        matrix = layer.linear_map.to_matrix(weight)
        added = share * matrix.abs().max() * torch.randn(len(matrix), 1, generator=generator)
        layer.analog_module.set_weights(matrix + added, layer.bias)


def test_a_constant_on_every_weight_of_a_row_is_taken_out(positive, images, relative):
    """What no scale or offset can do."""
    rpu_config = nabn.presets.GaussianWeightNoisePreset(sigma=0.0)
    chip = nabn.convert_to_noise_aware(positive, rpu_config, exclude=("depthwise", "head"))
    nabn.program_chip(chip, seed=0)
    add_to_rows(chip, positive, 0.1)
    x = images(16, 50)
    errors = {"none": relative(chip(x), positive(x))}
    for method in ("paired", "common_mode"):
        nabn.calibrate(chip, [images(32, 60)], method, reference=positive, shrink=1.0)
        errors[method] = relative(chip(x), positive(x))
    assert errors["common_mode"] < 0.1 and errors["common_mode"] < 0.25 * errors["paired"], errors


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_inputs_that_cancel_have_no_mean_to_follow(size, relative):
    """What rounding leaves of a layer normalization's mean is no signal."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(32)
    norm.weight.data.fill_(size)
    net = nn.Sequential(norm, nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    chip = chip_of(net, "gaussian:sigma=0.1", 0)
    nabn.calibrate(chip, [torch.randn(6, 5, 32) for _ in range(2)], "common_mode", reference=net)
    assert not chip[1].alignment.input_gain.any() and chip[3].alignment.input_gain.all()
    x = torch.randn(6, 5, 32)
    calibrated = chip(x)
    nabn.fold_calibration(chip)
    assert relative(chip(x), calibrated) < 1e-5


def test_which_layers_take_part(positive, images):
    chip = chip_of(positive, "gaussian:sigma=0.1", 0)
    report = nabn.calibrate(chip, [images(16, 1), images(3, 2)], "common_mode", reference=positive)
    layers = named_analog_layers(chip)
    assert {name for name, layer in layers.items() if layer.alignment.input_gain is not None} == TAKE_PART
    assert all(layer.alignment.is_set for layer in layers.values())
    assert all(shift.mean_after < 1e-3 < shift.mean_before for shift in report.layers if shift.name == "first")


def test_without_noise_it_is_the_identity(positive, images, relative):
    chip = chip_of(positive, "gaussian:sigma=0.0", 0)
    nabn.calibrate(chip, [images(5, 1), images(1, 2)], "common_mode", reference=positive)
    assert relative(chip(images(5, 30)), positive(images(5, 30))) < 1e-5


def test_what_the_report_says_comes_out(positive, images):
    """Means and spreads behind the first layer, whose inputs calibration does not change."""
    chip = chip_of(positive, "gaussian:sigma=0.2", 1)
    batch, seen = images(32, 1), {}
    shift = nabn.calibrate(chip, [batch], "common_mode", reference=positive).layers[0]
    for name, model in (("chip", chip), ("reference", positive)):
        with torch.no_grad():
            seen[name] = model.first(batch).transpose(0, 1).flatten(1).double()
    ratio = (seen["chip"].var(1, correction=0) / seen["reference"].var(1, correction=0)).log() / 2
    assert shift.spread_after == pytest.approx(float(ratio.square().mean().sqrt()), rel=0.1)
    assert shift.spread_after < shift.spread_before


@pytest.mark.parametrize("preset", ["gaussian", "pcm", "crossbar"])
def test_closer_than_paired_on_new_images(positive, images, preset):
    """Mean over eight chips; the least squares are those of the calibration images, so new ones are asked."""
    rpu_config = {
        "gaussian": nabn.presets.GaussianWeightNoisePreset(sigma=0.1),
        "pcm": nabn.presets.PCMPreset(),
        "crossbar": nabn.presets.StandardCrossbarPreset(),
    }[preset]
    chip, x = nabn.convert_to_noise_aware(positive, rpu_config), images(64, 70)
    nabn.calibrate_input_ranges(chip, [images(32, 80)])
    errors = {"paired": [], "common_mode": []}
    for seed in range(8):
        nabn.program_chip(chip, seed=seed, t_inference="1d")
        for method, found in errors.items():
            nabn.calibrate(chip, [images(64, 80)], method, reference=positive)
            found.append((chip(x) - positive(x)).square().mean())
    gain = torch.stack(errors["paired"]) - torch.stack(errors["common_mode"])
    # On the crossbar output noise is most of the error, which neither takes out: no worse within two standard errors.
    assert gain.mean() > (-2 * gain.std() / len(gain) ** 0.5 if preset == "crossbar" else 0.0)


def test_distill_can_start_from_it(positive, images):
    chip = chip_of(positive, "gaussian:sigma=0.1", 0)
    batches, x = [images(16, 1)], images(8, 3)
    nabn.calibrate(chip, batches, "common_mode", reference=positive)
    gains = {name: layer.alignment.input_gain for name, layer in named_analog_layers(chip).items()}
    start = chip(x)
    nabn.calibrate(chip, batches, "distill", reference=positive, steps=20, held_out=0.0, start="common_mode")
    assert not torch.equal(chip(x), start)
    for name, layer in named_analog_layers(chip).items():
        gain, before = layer.alignment.input_gain, gains[name]
        assert (gain is None) == (before is None) and (gain is None or not torch.equal(gain, before))


def test_aihwkits_own_layers_are_aligned_as_with_paired(images):
    from aihwkit.inference import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters import IOParameters

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(560, 8)).eval()
    config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel(), forward=IOParameters(is_perfect=True))
    chip = nabn.program_chip(convert_to_analog(net, config).eval(), seed=0)
    outs = []
    for method in ("paired", "common_mode"):
        nabn.calibrate(chip, [images(16, 1)], method, reference=net)
        outs.append(chip(images(4, 2)))
    torch.testing.assert_close(outs[0], outs[1])


def test_undo_fold_and_digital(positive, images, relative):
    """Folding leaves the input gain, which has nowhere to go; everything else as for any other method."""
    chip = chip_of(positive, "pcm", 0, t_inference="1d")
    x = images(4, 9)
    before = chip(x)
    report = nabn.calibrate(chip, [images(16, 1)], "common_mode", reference=positive)
    calibrated, inputs = chip(x), {}
    for name, layer in named_analog_layers(chip).items():
        layer.register_forward_hook(lambda m, args, out, name=name: inputs.__setitem__(name, (args[0], out)))
    chip(x)
    for name, layer in named_analog_layers(chip).items():
        assert relative(type(layer).to_digital(layer)(inputs[name][0]), inputs[name][1]) < 1e-5
    with nabn.calibration_disabled(chip):
        assert torch.equal(chip(x), before)
    handle = nabn.fold_calibration(chip)
    assert relative(chip(x), calibrated) < 2e-6
    for layer in named_analog_layers(chip).values():
        assert layer.alignment.scale is None and layer.alignment.offset is None
    with pytest.raises(CalibrationError, match="folded"):
        nabn.calibrate(chip, [images(4)], "paired", reference=positive)
    handle.undo()
    assert torch.equal(chip(x), calibrated)
    nabn.fold_calibration(chip)
    nabn.clear_calibration(chip)
    assert torch.equal(chip(x), before)
    handle.undo()
    report.undo()
    assert torch.equal(chip(x), before)


def test_files_keep_the_gain(positive, images, tmp_path):
    chip = chip_of(positive, "pcm", 0, t_inference="1d")
    nabn.calibrate(chip, [images(16, 1)], "common_mode", reference=positive)
    x, out = images(4, 9), chip(images(4, 9))
    nabn.save_chip(chip, tmp_path / "chip.safetensors")
    assert torch.equal(nabn.load_chip(positive, tmp_path / "chip.safetensors")(x), out)
    tensors = calibration_tensors(chip)
    assert {name for name in tensors if name.endswith(".input_gain")} == {f"{name}.input_gain" for name in TAKE_PART}
    nabn.clear_calibration(chip)
    uncalibrated = chip(x)
    for broken in (
        {"first.input_gain": torch.ones(3)},
        {"head.input_gain": torch.ones(3)},
        {"elsewhere.input_gain": torch.ones(3)},
    ):
        with pytest.raises(CalibrationError, match=next(iter(broken)).split(".")[0]):
            load_calibration_tensors(chip, {**tensors, **broken})
    alone = {"first.input_gain": tensors["first.input_gain"]}
    with pytest.raises(CalibrationError, match="input gain of layer 'first' has no scale beside it"):
        load_calibration_tensors(chip, alone)
    assert torch.equal(chip(x), uncalibrated)
    load_calibration_tensors(chip, tensors)
    assert torch.equal(chip(x), out)


@pytest.mark.parametrize("shrink", [-0.1, 1.1, float("nan"), "half"])
def test_impossible_options(shrink):
    with pytest.raises(NabnError, match="shrink"):
        CommonMode(shrink=shrink)
