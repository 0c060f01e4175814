"""The methods that give BatchNorm other statistics, against the slow obvious answer."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import CalibrationError, NabnError, UnknownNameError
from aihwkit_nabn.nn import NoiseAwareBatchNorm
from tests.chips import chip_of


class ByHand(nn.Module):
    """Stands in for a BatchNorm: keeps every input, and normalises as `rule(self)` says."""

    def __init__(self, bn, rule):
        super().__init__()
        self.bn, self.rule, self.inputs = bn, rule, []

    def forward(self, x):
        self.inputs.append(x)
        mean, var = self.rule(self)
        view = (1, -1) + (1,) * (x.dim() - 2)
        normal = (x - mean.view(view)) / (var + self.bn.eps).sqrt().view(view)
        return normal * self.bn.weight.double().view(view) + self.bn.bias.double().view(view)

    def of(self, inputs):
        rows = torch.cat([x.movedim(1, -1).reshape(-1, x.shape[1]) for x in inputs])
        return rows.mean(0), rows.var(0, correction=0)

    @property
    def trained(self):
        return self.bn.running_mean.double(), self.bn.running_var.double()


def replaced(chip, rule):
    """A digital double-precision copy of the chip with its BatchNorm layers done by hand, and these by name."""
    from aihwkit.nn.conversion import convert_to_digital

    nabn.register()
    try:
        model = copy.deepcopy(chip)
        names = [name for name, module in model.named_modules() if isinstance(module, NoiseAwareBatchNorm)]
        model = convert_to_digital(model).double().eval()
    finally:
        nabn.unregister()
    layers, done = {}, {}
    for name in names:
        parent, _, child = name.rpartition(".")
        original = model.get_submodule(name)
        done.setdefault(id(original), ByHand(original, rule))
        layers[name] = done[id(original)]
        model.get_submodule(parent)._modules[child] = layers[name]
    return model, layers


def compare(chip, expected, tolerance=2e-5):
    for name, (mean, var) in expected.items():
        bn = chip.get_submodule(name)
        spread = var.sqrt().max()
        assert (bn.calibrated_mean - mean).abs().max() < tolerance * (spread + mean.abs().max())
        assert ((bn.calibrated_var - var).abs() / var.clamp(min=1e-6)).max() < 10 * tolerance


def so_far(layer):
    return layer.of(layer.inputs)


def own_batch(layer):
    return layer.of(layer.inputs[-1:])


def test_population_is_the_moments_over_the_whole_set(chip, batches):
    model, layers = replaced(chip, so_far)
    model(torch.cat(batches).double())
    report = nabn.calibrate(chip, batches, "population")
    compare(chip, {name: so_far(layer) for name, layer in layers.items()})
    assert [layer.name for layer in report.layers] == list(layers)


def test_ema_formula(chip, batches):
    model, layers = replaced(chip, own_batch)
    for batch in batches:
        model(batch.double())
    keep = 0.2 ** (1 / 3)
    expected = {}
    for name, layer in layers.items():
        mean, var = layer.trained
        for x in layer.inputs:
            b = layer.of([x])
            mean, var = keep * mean + (1 - keep) * b[0], keep * var + (1 - keep) * b[1]
        expected[name] = (mean, var)
    nabn.calibrate(chip, batches, "ema", remainder=0.2)
    compare(chip, expected)
    nabn.calibrate(chip, batches, "ema", remainder=1.0)
    compare(chip, {name: layer.trained for name, layer in layers.items()})


def test_prior_formula(chip, batches):
    def mixture(layer):
        share = 12.5 / (12.5 + sum(map(len, batches)))
        return tuple(
            share * trained + (1 - share) * chips for trained, chips in zip(layer.trained, so_far(layer), strict=True)
        )

    model, layers = replaced(chip, mixture)
    model(torch.cat(batches).double())
    nabn.calibrate(chip, batches, "prior", strength=12.5)
    compare(chip, {name: mixture(layer) for name, layer in layers.items()})


def test_prior_of_no_strength_is_population(chip, batches):
    nabn.calibrate(chip, batches, "prior", strength=0.0)
    prior = {name: value.clone() for name, value in chip.named_buffers() if "calibrated" in name}
    nabn.calibrate(chip, batches, "population")
    for name, value in chip.named_buffers():
        if "calibrated" in name:
            torch.testing.assert_close(value, prior[name], rtol=1e-6, atol=1e-7)


def test_batch_is_torchs_batchnorm_in_training_mode(chip, images):
    class InTraining(nn.Module):
        def __init__(self, bn):
            super().__init__()
            self.bn = bn

        def forward(self, x):
            return F.batch_norm(x, None, None, self.bn.weight, self.bn.bias, True, 0.0, self.bn.eps)

    model, layers = replaced(chip, own_batch)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        model.get_submodule(parent)._modules[child] = InTraining(layer.bn)
    report = nabn.calibrate(chip, None, "batch")
    assert (report.n_samples, report.n_batches, report.layers) == (0, 0, [])
    for n in (6, 2):
        x = images(n, 40)
        torch.testing.assert_close(chip(x).double(), model(x.double()), rtol=1e-4, atol=1e-5)


def test_a_single_value_has_no_statistics_of_its_own(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    chip = chip_of(net, "gaussian", 0)
    x = torch.randn(1, 4)
    uncalibrated = chip(x)
    for method in ("batch", "online"):
        nabn.calibrate(chip, None, method)
        assert torch.equal(chip(x), uncalibrated)
    assert chip(torch.empty(0, 4)).shape == (0, 3)


@pytest.mark.parametrize("momentum", [0.1, 0.45, 1.0])
def test_online_momentum_rule(chip, images, momentum):
    state = {}

    def follow(layer):
        n, mean, var = state.get(id(layer), (0, *layer.trained))
        now = own_batch(layer)
        weight = max(momentum, 1 / (n + 2))
        state[id(layer)] = (n + 1, mean + weight * (now[0] - mean), var + weight * (now[1] - var))
        return state[id(layer)][1:]

    model, layers = replaced(chip, follow)
    report = nabn.calibrate(chip, [images(4, 1), images(2, 2)], "online", momentum=momentum)
    assert report.n_samples == 6
    model(images(4, 1).double()), model(images(2, 2).double())
    for seed in range(3, 9):
        x = images(seed, seed)
        torch.testing.assert_close(chip(x).double(), model(x.double()), rtol=2e-4, atol=2e-5)
    compare(chip, {name: state[id(layer)][1:] for name, layer in layers.items()}, tolerance=5e-5)


def test_online_freezes_and_undoes(chip, images):
    x = images(4, 1)
    uncalibrated = chip(x)
    report = nabn.calibrate(chip, None, "online")
    assert not torch.equal(chip(x), chip(x))
    report.freeze()
    frozen = chip(x)
    chip(images(8, 2))
    assert torch.equal(chip(x), frozen) and not torch.equal(frozen, uncalibrated)
    report.undo()
    assert torch.equal(chip(x), uncalibrated)


def test_online_is_not_poisoned_by_one_bad_input(chip, images):
    nabn.calibrate(chip, [images(4, 1)], "online")
    bad = images(4, 2)
    bad[0, 0, 0, 0] = torch.nan
    chip(bad)
    assert torch.isfinite(chip(images(4, 3))).all()


def test_online_follows_noise_that_moves(chip, net, images, relative):
    """The chip's weights change under way; after some batches the statistics fit the new ones."""
    nabn.calibrate(chip, [images(16, 1)], "online", momentum=0.3)
    snapshots = []
    for seed in (8, 9):
        for tile in chip.stem[0].analog_tiles():
            tile.tile.set_weights(tile.tile.get_weights() * (1 + seed / 10))
        for n in range(12):
            chip(images(16, 100 * seed + n))
        x = images(64, 70)
        inputs = chip.stem[0](x)
        snapshots.append(relative(chip.stem[1].calibrated_var, inputs.var((0, 2, 3), correction=0)))
    assert max(snapshots) < 0.3


def test_a_batchnorm_called_several_times_counts_all_its_calls(images):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 4, k, padding=1) for k in (1, 3))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return sum(self.norm(conv(x[..., i:, :])).mean((2, 3)) for i, conv in enumerate(self.convs))

    torch.manual_seed(0)
    rpu_config = nabn.presets.GaussianWeightNoisePreset(sigma=0.2)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(Shared().eval(), rpu_config), seed=0)
    batches = [images(3, 1), images(2, 2)]
    inputs = [[conv(b[..., i:, :]).movedim(1, -1).reshape(-1, 4) for i, conv in enumerate(chip.convs)] for b in batches]
    nabn.calibrate(chip, batches, "population")
    rows = torch.cat([x for calls in inputs for x in calls]).double()
    torch.testing.assert_close(chip.norm.calibrated_mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chip.norm.calibrated_var.double(), rows.var(0, correction=0), rtol=1e-5, atol=0)
    nabn.calibrate(chip, batches, "ema", remainder=0.25)  # one step per batch, with the moments of all its calls
    mean = torch.zeros(4).double()
    for calls in inputs:
        mean = 0.5 * mean + 0.5 * torch.cat(calls).double().mean(0)
    torch.testing.assert_close(chip.norm.calibrated_mean.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["population", "ema", "prior", "batch", "online"])
def test_without_batchnorm_paired_is_named(method, images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(189, 3)).eval()
    chip = chip_of(net, "gaussian", 0)
    with pytest.raises(CalibrationError, match="no BatchNorm.*use method='paired', which needs none"):
        nabn.calibrate(chip, [images(3)], method)
    nabn.calibrate(chip, [images(3)], "paired", reference=net)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "ema",
            {"remainder": 0.0},
            "remainder must be the weight left on the trained statistics, a finite number > 0 and <= 1, got 0.0",
        ),
        (
            "online",
            {"momentum": 1.5},
            "momentum must be the weight of a new batch, a finite number > 0 and <= 1, got 1.5",
        ),
        ("online", {"momentun": 0.5}, "has no option 'momentun', did you mean 'momentum'?; options: momentum"),
        ("population", {"momentum": 0.5}, "method 'population' has no option 'momentum'; options: none"),
    ],
)
def test_impossible_options(chip, batches, method, options, message):
    with pytest.raises(NabnError, match=re.escape(message)):
        nabn.calibrate(chip, batches, method, **options)


def test_an_unknown_method_suggests_the_nearest(chip, batches):
    with pytest.raises(UnknownNameError, match=r"unknown calibration method 'pared', did you mean 'paired'\?"):
        nabn.calibrate(chip, batches, "pared")
    with pytest.raises(NabnError, match="go with a method's name, not with an instance"):
        nabn.calibrate(chip, batches, nabn.calibration.CALIBRATION_METHODS.get("ema")(), remainder=0.5)
