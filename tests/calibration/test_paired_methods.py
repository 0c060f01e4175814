"""The methods that compare with the reference, against the slow obvious answer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.nn import AnalogConv2d
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS, Moments
from aihwkit_nabn.calibration.pair_moments import ANALOG, DIGITAL, JointMoments, Pair
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn import named_analog_layers
from tests.chips import chip_of
from tests.tensors import bits, equal

Paired = CALIBRATION_METHODS.get("paired")


def rows(output, channel_dim):
    return output.movedim(channel_dim, -1).reshape(-1, output.shape[channel_dim])


def outputs_of(modules, model, batch):
    """Return every module's outputs in one forward pass, in the order of the calls."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.append((name, out.detach())))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


def make_pair(digital, analog, channel_dim):
    """A pair from concatenated outputs, the correlation over all positions with numpy."""
    d, a = (torch.cat([rows(x, channel_dim) for x in outputs]) for outputs in (digital, analog))
    joint = JointMoments.empty(d.shape[1], d.device)
    if len(a) == len(d) and len(a):
        joint.add(a.t(), d.t())
    return Pair(Moments.of(d, -1), Moments.of(a, -1), joint)


def by_hand(chip, net, batches, rule):
    """Scale and offset by layer: all batches through one layer, its correction put in for good, then the next one."""
    layers = named_analog_layers(chip)
    dims = {name: layer.alignment.channel_dim for name, layer in layers.items()}
    twins = {name: net.get_submodule(name) for name in layers}
    reference = [call for batch in batches for call in outputs_of(twins, net, batch)]
    found, hooks = {}, []
    for name, layer in layers.items():
        seen = [call for batch in batches for call in outputs_of({name: layer}, chip, batch)]
        if not seen:
            continue
        found[name] = rule(make_pair([y for key, y in reference if key == name], [y for _, y in seen], dims[name]))

        def align(module, args, output, vectors=found[name], dim=dims[name]):
            scale, offset = (vector.to(output).view((-1,) + (1,) * (-dim - 1)) for vector in vectors)
            return output * scale + offset

        hooks.append(layer.register_forward_hook(align))
    for hook in hooks:
        hook.remove()
    return found


def compare(chip, expected, tolerance=2e-4):
    for name, layer in named_analog_layers(chip).items():
        assert layer.alignment.is_set == (name in expected)
        if name in expected:
            scale, offset = expected[name]
            torch.testing.assert_close(layer.alignment.scale.double(), scale, rtol=tolerance, atol=tolerance / 10)
            torch.testing.assert_close(layer.alignment.offset.double(), offset, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shrink", [0.0, 1.0])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_paired_is_alignment_layer_by_layer(chip, net, batches, n_batches, shrink):
    method = Paired(shrink=shrink)
    expected = by_hand(chip, net, batches[:n_batches], method.rule)
    nabn.calibrate(chip, batches[:n_batches], method, reference=net)
    compare(chip, expected)


def test_the_rule(chip):
    rng = np.random.default_rng(0)
    digital = rng.normal(2.0, 3.0, (50, 3))
    analog = digital * 0.5 - 1 + rng.normal(0, 0.4, (50, 3))
    pair = make_pair([torch.tensor(digital)], [torch.tensor(analog)], -1)
    correlation = [np.corrcoef(digital[:, c], analog[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(pair.correlation.numpy(), correlation, rtol=1e-10)
    plain = digital.std(0) / analog.std(0)
    for shrink in (0.0, 0.5, 1.0):
        scale, offset = Paired(shrink=shrink).rule(pair)
        np.testing.assert_allclose(scale.numpy(), plain * np.array(correlation) ** shrink, rtol=0.05)
        np.testing.assert_allclose(offset.numpy(), digital.mean(0) - scale.numpy() * analog.mean(0), rtol=1e-10)
    for flat in (analog, digital):
        flat[:, 1] = 0.7
        scale, offset = Paired(shrink=1.0).rule(make_pair([torch.tensor(digital)], [torch.tensor(analog)], -1))
        assert torch.isfinite(scale).all() and torch.isfinite(offset).all() and (scale >= 0).all()
    assert scale[1] == 1.0 and offset[1] == 0.0


def test_paired_brings_every_layers_moments_to_the_references(chip, net, images):
    batch = images(32, 5)
    layers = named_analog_layers(chip)
    reference = dict(outputs_of({name: net.get_submodule(name) for name in layers}, net, batch))
    before = dict(outputs_of(layers, chip, batch))
    report = nabn.calibrate(chip, [batch], "paired", reference=net, shrink=0.0)
    after = dict(outputs_of(layers, chip, batch))
    assert [layer.name for layer in report.layers] == list(layers)
    for shift in report.layers:
        dim = layers[shift.name].alignment.channel_dim
        target, got, raw = (rows(outputs[shift.name], dim).double() for outputs in (reference, after, before))
        spread = target.std(0, correction=0)
        assert (got.mean(0) - target.mean(0)).abs().max() < 1e-4 * spread.max()
        torch.testing.assert_close(got.std(0, correction=0), spread, rtol=0.05, atol=0)
        assert shift.n_values == len(target) and shift.kind == "analog layer"
        assert shift.mean_after < 1e-4 < shift.mean_before and shift.spread_after < shift.spread_before
        if shift.name == "stem.0":  # behind the first layer the chip's own inputs have been corrected already
            expected = ((raw.mean(0) - target.mean(0)) / spread).square().mean().sqrt()
            assert shift.mean_before == pytest.approx(float(expected), rel=1e-3)
    lines = str(report).splitlines()
    assert lines[0].startswith("paired: 32 samples in 1 batches") and len(lines) == 3 + len(layers)
    assert all(line.startswith(name) and " -> " in line for line, name in zip(lines[2:-1], layers, strict=True))
    assert lines[-1].startswith(f"verified on the example inputs: {len(layers)} layers give what the digital ones")


def test_paired_on_a_chip_without_noise_is_the_identity(net, batches, images, relative):
    chip = chip_of(net, "gaussian:sigma=0.0", 0)
    for method in ("paired", "distill"):
        nabn.calibrate(chip, batches, method, reference=net)
        assert relative(chip(images(5, 30)), net(images(5, 30))) < 1e-5


@pytest.mark.parametrize("method", ["paired", "distill"])
def test_comes_closer_to_the_reference_on_new_images(method, net, images):
    errors = {"none": [], method: []}
    for seed in range(5):
        rpu_config = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, rpu_config), seed=seed)
        x = images(32, 70)
        errors["none"].append((chip(x) - net(x)).square().mean())
        nabn.calibrate(chip, [images(32, 80)], method, reference=net)
        errors[method].append((chip(x) - net(x)).square().mean())
    assert torch.stack(errors[method]).mean() < 0.7 * torch.stack(errors["none"]).mean()


class SharedHead(nn.Module):
    """A convolution that runs on every level, and one that eval mode leaves out."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.auxiliary = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        if self.training:
            x = self.auxiliary(x)
        return sum(self.shared(level).mean((2, 3)) for level in (x, x[..., ::2], x[..., ::3, :]))


def test_a_layer_that_runs_on_several_inputs_has_one_alignment(images):
    torch.manual_seed(0)
    net = SharedHead().eval()
    chip = chip_of(net, "gaussian:sigma=0.2", 0)
    batches = [images(3, 1), images(2, 2)]
    expected = by_hand(chip, net, batches, Paired(shrink=0.0).rule)
    report = nabn.calibrate(chip, batches, "paired", reference=net, shrink=0.0)
    assert [layer.name for layer in report.layers] == ["stem", "shared"]
    assert not chip.auxiliary.alignment.is_set
    compare(chip, expected)


def test_a_branch_without_inputs_is_let_be(images):
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            features = self.conv(x).mean((2, 3))
            return self.head(features[features[:, 0] > 1e6])

    net = Regions().eval()
    chip = chip_of(net, "gaussian", 0)
    nabn.calibrate(chip, [images(3)], "paired", reference=net)
    assert chip.conv.alignment.is_set and not chip.head.alignment.is_set


def test_models_of_aihwkits_own_conversion(images, relative, settle):
    """No layer of ours in it: alignments are put behind aihwkit's own."""
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(210, 4)))
    config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel(), forward=IOParameters(is_perfect=True))
    chip = convert_to_analog(nn.ModuleDict({"net": net}), config).eval()
    nabn.program_chip(chip, seed=0, t_inference="1d")
    assert isinstance(chip["net"][0], AnalogConv2d) and type(chip).__name__.startswith("AnalogWrapper")
    x, batches = images(16, 3), [images(16, 4), images(8, 5)]

    def run(model, batch):
        return model["net"](batch)

    uncalibrated = run(chip, x)
    keys = set(chip.state_dict())
    reference = nn.ModuleDict({"net": net})
    report = nabn.calibrate(chip, batches, reference=reference, forward_fn=run)
    calibrated = run(chip, x)
    assert relative(calibrated, net(x)) < relative(uncalibrated, net(x))
    with nabn.calibration_disabled(chip):
        assert torch.equal(run(chip, x), uncalibrated)
    twin = copy.deepcopy(chip)
    assert torch.equal(run(twin, x), calibrated)
    handle = nabn.fold_calibration(chip)
    assert relative(run(chip, x), calibrated) < 1e-5
    handle.undo()
    assert torch.equal(run(chip, x), calibrated)
    report.undo()
    assert torch.equal(run(chip, x), uncalibrated) and set(chip.state_dict()) == keys
    before = bits(chip)
    nabn.calibrate(chip, batches, "distill", reference=reference, forward_fn=run, steps=2).undo()
    with pytest.raises(CalibrationError, match="no BatchNorm with trained statistics.*use method='paired'"):
        nabn.calibrate(chip, batches, "population", forward_fn=run)
    assert equal(bits(chip), before)


def test_cross_moments_merge_as_numpys_over_everything():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 1, (n, 2, 3)) for n in (7, 1, 12)]
    joint = JointMoments.empty(3, torch.device("cpu"))
    for part in parts:
        part[:, 1] = part[:, 1] * 0.5 + part[:, 0]
        joint.add(torch.tensor(part[:, 0].T), torch.tensor(part[:, 1].T))
        joint.add(torch.empty(3, 0), torch.empty(3, 0))
    a, d = np.concatenate(parts).transpose(1, 0, 2)
    expected = [np.corrcoef(a[:, c], d[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(joint.correlations()[ANALOG, DIGITAL].numpy(), expected, rtol=1e-10)
    nothing = JointMoments.empty(2, torch.device("cpu"))
    assert torch.equal(nothing.correlations(), torch.zeros(2, 2, 2).double())
    assert torch.equal(Pair(Moments.empty(2), Moments.empty(2), nothing).correlation, torch.ones(2).double())


def test_the_grid_of_positions_for_the_correlation_is_fair(images):
    """On maps too large to keep, the correlation comes from a sample that is close to all of it."""
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3, padding=1).eval()
    chip = chip_of(net, "gaussian:sigma=0.3", 0)
    batch = images(2, 1, (3, 150, 90))
    with torch.no_grad():
        pair = make_pair([net(batch)], [chip(batch)], -3)
    expected, _ = Paired(shrink=1.0).rule(pair)
    nabn.calibrate(chip, [batch], "paired", reference=net, shrink=1.0)
    standard_error = (1 - pair.correlation.square()) / 1000**0.5
    assert ((chip.alignment.scale - expected).abs() < 4 * standard_error + 1e-3).all()
