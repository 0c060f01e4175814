"""Normalizations with running statistics and a forward pass of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import NoiseAwareNormalization
from tests.chips import chip_of
from tests.tensors import equal, state_of

PRESET = nabn.presets.GaussianWeightNoisePreset


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with dropout and an activation inside."""

    def __init__(self, n) -> None:
        super().__init__(n)
        self.drop, self.act = nn.Dropout(0.5), nn.GELU()

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class Behind(nn.BatchNorm2d):
    """Goes on after torch's own forward pass."""

    def forward(self, x):
        return super().forward(x - 0.5).relu()


class ABN(nn.Module):
    """A normalization that derives from none of torch's, as InPlace-ABN does without its compiled part."""

    def __init__(self, n) -> None:
        super().__init__()
        self.epsilon, self.slope = 1e-3, 0.1
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x):
        weight = self.weight.abs() + self.epsilon
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, weight, self.bias, training=self.training, eps=self.epsilon)
        return F.leaky_relu(x, self.slope)


NORMS = {
    "instance": lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    "instance, bare": lambda: nn.InstanceNorm2d(6, track_running_stats=True, momentum=None or 0.2),
    "norm and activation": lambda: NormAct(6),
    "behind": lambda: Behind(6),
    "of its own": lambda: ABN(6),
}


@pytest.fixture(params=NORMS)
def model(request):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), NORMS[request.param](), nn.Conv2d(6, 2, 1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias):
            if tensor is not None:
                tensor.uniform_(0.5, 1.5, generator=generator)
        model[1].running_mean.normal_(0.0, 0.3, generator=generator)
        model[1].running_var.uniform_(0.2, 1.0, generator=generator)
    return model.eval()


@torch.no_grad()
def test_the_chip_without_noise_is_the_network(model, images, relative):
    before = state_of(model)
    analog = chip_of(model, "gaussian:sigma=0")
    report = analog.conversion_report
    assert [(entry.name, entry.kind) for entry in report.normalization] == [("1", type(model[1]).__name__)]
    assert not report.refused and not report.kept_digital
    assert isinstance(analog[1], NoiseAwareNormalization)
    assert {name for name in analog.state_dict() if name.startswith("1.")} == {
        name for name in before if name.startswith("1.")
    }
    x = images(4)
    assert relative(analog(x), model(x)) < 1e-5
    assert equal(state_of(model), before)
    assert relative(copy.deepcopy(analog)(x), model(x)) < 1e-5


@torch.no_grad()
def test_population_statistics_are_those_of_the_chips_input(model, images, relative, tmp_path):
    chip = chip_of(model, "gaussian:sigma=0.3")
    x = images(12)
    uncalibrated = chip(x)
    shift = 0.5 if isinstance(model[1], Behind) else 0.0
    inputs = chip[0](x) - shift
    report = nabn.calibrate(chip, [x[:5], x[5:6], x[6:]], method="population")
    assert torch.allclose(chip[1].calibrated_mean, inputs.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(chip[1].calibrated_var, inputs.var((0, 2, 3), correction=0), atol=1e-5)
    expected = copy.deepcopy(model[1])
    expected.running_mean.copy_(chip[1].calibrated_mean)
    expected.running_var.copy_(chip[1].calibrated_var)
    found = chip(x)
    assert relative(found, chip[2](expected(chip[0](x)))) < 1e-5
    digital = type(chip[1]).to_digital(chip[1])
    assert type(digital) is type(model[1])
    assert relative(digital(chip[0](x)), expected(chip[0](x))) < 1e-5
    nabn.save_chip(chip, tmp_path / "chip.nabn")
    assert torch.equal(nabn.load_chip(model, tmp_path / "chip.nabn")(x), found)
    handle = nabn.fold_calibration(chip)
    assert relative(chip(x), found) < 1e-6
    handle.undo()
    with nabn.calibration_disabled(chip):
        assert torch.equal(chip(x), uncalibrated)
    report.undo()
    assert torch.equal(chip(x), uncalibrated)


@pytest.mark.parametrize("method", ["ema", "prior", "batch", "online", "paired"])
def test_every_method_works(model, images, method):
    chip = chip_of(model, "gaussian:sigma=0.3")
    x = images(12)
    with torch.no_grad():
        before = chip(x)
        nabn.calibrate(chip, [x], method=method, reference=model)
        assert not torch.equal(chip(x), before)


def test_training_is_the_layers_own(model, images):
    analog = nabn.convert_to_noise_aware(model, PRESET(sigma=0.0)).train()
    model.train()
    x = images(4)
    for network in (model, analog):
        torch.manual_seed(5)
        network(x).square().sum().backward()
    assert torch.allclose(analog[1].running_mean, model[1].running_mean, atol=1e-6)
    assert torch.allclose(analog[1].running_var, model[1].running_var, atol=1e-5)
    if model[1].weight is not None:
        assert torch.allclose(analog[1].weight.grad, model[1].weight.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_compiling_and_tracing_change_nothing(model, images, relative):
    chip = chip_of(model, "gaussian:sigma=0.3")
    x = images(4)
    nabn.calibrate(chip, [x], method="population")
    assert relative(torch.compile(chip, backend="eager")(x), chip(x)) < 1e-6
    assert relative(torch.jit.trace(chip, x)(x), chip(x)) < 1e-6


class Arithmetic(nn.BatchNorm2d):
    def forward(self, x):
        return (x - self.running_mean.view(-1, 1, 1)).relu()


class OfTheBatch(nn.BatchNorm2d):
    def forward(self, x):
        return F.batch_norm(x, self.running_mean.clone(), self.running_var.clone(), training=True)


class Unused(nn.Module):
    """Holds statistics and a layer."""

    def __init__(self, n) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))
        self.inner = nn.Conv2d(n, n, 1)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (Arithmetic, "gives its running statistics to torch.Tensor.view"),
        (OfTheBatch, "gives its running statistics to torch.Tensor.clone"),
        (Unused, "never gives its running statistics"),
    ],
)
def test_other_uses_of_the_statistics_are_refused_with_the_reason(kind, reason, images, relative):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4)).eval()
    analog = nabn.convert_to_noise_aware(model, PRESET(sigma=0.0))
    (refused,) = analog.conversion_report.refused
    assert refused.name == "1" and reason in refused.reason
    assert type(analog[1]) is kind
    converted = [entry.name for entry in analog.conversion_report.converted]
    assert converted == (["0", "1.inner"] if kind is Unused else ["0"])
    with torch.no_grad():
        assert relative(analog(images(3)), model(images(3))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["BatchNormAct2d", "SyncBatchNormAct"])
def test_of_timm(name, images, relative):
    kind = getattr(pytest.importorskip("timm.layers"), name)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), kind(4)).eval()
    analog = nabn.convert_to_noise_aware(model, PRESET(sigma=0.0))
    assert isinstance(analog[1], NoiseAwareNormalization)
    assert relative(analog(images(3)), model(images(3))) < 1e-5
