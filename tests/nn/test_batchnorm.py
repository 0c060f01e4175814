from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops.misc import FrozenBatchNorm2d

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn import NoiseAwareBatchNorm, NoiseAwareBatchNorm1d, NoiseAwareBatchNorm2d, NoiseAwareBatchNorm3d

RANKS = [
    (nn.BatchNorm1d, NoiseAwareBatchNorm1d, (4, 3)),
    (nn.BatchNorm1d, NoiseAwareBatchNorm1d, (4, 3, 5)),
    (nn.BatchNorm2d, NoiseAwareBatchNorm2d, (4, 3, 2, 5)),
    (nn.BatchNorm3d, NoiseAwareBatchNorm3d, (2, 3, 2, 1, 4)),
    (nn.SyncBatchNorm, NoiseAwareBatchNorm, (4, 3, 2, 5)),
]


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.5))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("digital", "ours", "shape"), RANKS)
def test_equals_the_original_and_comes_back(digital, ours, shape, dtype):
    torch.manual_seed(0)
    original = randomised(digital(3, eps=1e-2, momentum=0.3)).to(dtype).eval()
    new = ours.from_digital(original)
    x = torch.randn(shape, dtype=dtype)
    assert type(new) is ours and not new.training
    assert torch.equal(new(x), original(x))
    assert (new.eps, new.momentum) == (1e-2, 0.3)
    new.set_calibrated(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 4.0, 0.0]))
    expected = F.batch_norm(
        x, new.calibrated_mean, new.calibrated_var, original.weight, original.bias, False, 0.0, original.eps
    )
    assert torch.equal(new(x), expected)
    assert torch.equal(new.running_mean, original.running_mean)
    back = ours.to_digital(new)
    assert isinstance(back, nn.modules.batchnorm._BatchNorm) and not isinstance(back, NoiseAwareBatchNorm)
    assert back.weight.dtype == dtype and not back.training
    assert torch.equal(back(x), expected)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_variants_of_batchnorm(options):
    torch.manual_seed(0)
    original = randomised(nn.BatchNorm2d(3, **options)).eval()
    new = NoiseAwareBatchNorm2d.from_digital(original)
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(new(x), original(x))
    original.train()
    assert torch.equal(new.train()(x), original(x))
    assert new.state_dict().keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)


def test_training_is_torchs_own_and_moves_the_trained_statistics_only():
    torch.manual_seed(0)
    original = randomised(nn.BatchNorm2d(3)).train()
    new = NoiseAwareBatchNorm2d.from_digital(original)
    new.set_calibrated(torch.zeros(3), torch.ones(3))
    x = torch.randn(4, 3, 2, 2)
    assert torch.equal(new(x), original(x))
    assert torch.equal(new.running_var, original.running_var)
    assert torch.equal(new.calibrated_mean, torch.zeros(3))


def test_frozen_batchnorm_of_torchvision(images, relative):
    frozen = randomised(FrozenBatchNorm2d(4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), frozen).eval()
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset())
    assert type(analog[1]) is NoiseAwareBatchNorm2d
    assert not any(parameter.requires_grad for parameter in analog[1].parameters())
    x = images(3)
    assert relative(analog(x), model(x)) < 1e-5


def test_a_batchnorm_that_computes_something_else_is_refused():
    class FrozenSquared(torchvision.ops.FrozenBatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 2

    class FrozenCopying(torchvision.ops.FrozenBatchNorm2d):
        def forward(self, x):
            return super().forward(x).clone()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenSquared(4), FrozenCopying(4))
    report = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset()).conversion_report
    assert [entry.name for entry in report.refused] == ["1"]
    assert "computes something different" in report.refused[0].reason
    assert [entry.name for entry in report.normalization] == ["2"]


@pytest.mark.parametrize(("digital", "ours", "shape"), RANKS)
def test_plain_checkpoints_load_with_no_missing_key(digital, ours, shape):
    source = randomised(digital(3))
    new = ours(3)
    result = new.load_state_dict(source.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(new.running_var, source.running_var)


def test_calibrated_statistics_survive_a_round_trip_and_leave_with_a_plain_checkpoint():
    bn = randomised(NoiseAwareBatchNorm2d(3)).eval()
    plain = bn.state_dict()
    plain = {name: value.clone() for name, value in plain.items()}
    bn.set_calibrated(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.1, 4.0, 0.5]))
    other = NoiseAwareBatchNorm2d(3).eval()
    result = other.load_state_dict(bn.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    x = torch.randn(2, 3, 4, 4)
    assert other.is_calibrated and torch.equal(other(x), bn(x))
    other.load_state_dict(plain)
    assert not other.is_calibrated and other.calibrated_mean is None


def test_buffers_move_with_the_layer():
    bn = NoiseAwareBatchNorm2d(3).eval()
    bn.set_calibrated(torch.ones(3), torch.ones(3))
    bn.double()
    assert bn.calibrated_mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "var", "message"),
    [
        (torch.zeros(2), torch.ones(3), r"calibrated mean must have shape \(3,\), got \(2,\)"),
        (torch.zeros(3), torch.ones(3, 1), r"calibrated variance must have shape \(3,\)"),
        (torch.tensor([0.0, torch.nan, 0.0]), torch.ones(3), "calibrated mean must be finite"),
        (torch.zeros(3), torch.tensor([1.0, torch.inf, 1.0]), "calibrated variance must be finite"),
        (torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), "calibrated variance must be >= 0"),
    ],
)
def test_impossible_statistics_are_refused(mean, var, message):
    bn = NoiseAwareBatchNorm2d(3)
    with pytest.raises(NabnError, match=message):
        bn.set_calibrated(mean, var)
    assert not bn.is_calibrated


def test_inputs_of_the_wrong_rank():
    with pytest.raises(ValueError, match="expected 4D input"):
        NoiseAwareBatchNorm2d(3).eval()(torch.zeros(2, 3))
    with pytest.raises(NabnError, match="needs .batch, channels"):
        NoiseAwareBatchNorm(3).eval()(torch.zeros(3))
    with pytest.raises(NabnError, match="no trained statistics"):
        NoiseAwareBatchNorm2d(3, track_running_stats=False).trained_statistics()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 2), (0, 3, 5, 2)])
def test_no_epsilon(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    bn = NoiseAwareBatchNorm(3, eps=0.0, affine=affine).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2.0)
    if affine:
        bn.weight.data.normal_()
        bn.bias.data.normal_()
    x = torch.randn(shape)
    view = (1, -1, *(1,) * (len(shape) - 2))
    expected = (x - bn.running_mean.view(view)) / bn.running_var.sqrt().view(view)
    if affine:
        expected = expected * bn.weight.view(view) + bn.bias.view(view)
    assert torch.allclose(bn(x), expected, atol=1e-6)


def test_frozen_layers_without_epsilon_are_converted_and_calibrated() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), FrozenBatchNorm2d(6, eps=0.0), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    chip = nabn.program_chip(
        nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.2)), seed=1
    )
    assert len(chip.conversion_report.normalization) == 1 and not chip.conversion_report.refused
    x = torch.randn(16, 3, 8, 8)
    report = nabn.calibrate(chip, [x], method="population")
    assert len(report.layers) == 1
    out = chip[1](chip[0](x))
    assert torch.allclose(out.var((0, 2, 3), unbiased=False), torch.ones(6), atol=1e-4)


class _FrozenLikeDetr(nn.Module):
    """As transformers' DETR has it: everything in buffers, `eps` in the forward pass alone."""

    eps_inside = 1e-5

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((n_channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps_inside).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def test_frozen_layers_that_keep_eps_to_themselves(images, relative) -> None:
    class FrozenOtherwise(_FrozenLikeDetr):
        eps_inside = 1e-2

    model = nn.Sequential(nn.Conv2d(3, 4, 3), _FrozenLikeDetr(4), FrozenOtherwise(4)).eval()
    for frozen in model[1:]:
        frozen.running_var.copy_(torch.tensor([0.2, 0.5, 2.0, 3.0]))
        frozen.running_mean.normal_()
    chip = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.2))
    assert type(chip[1]) is NoiseAwareBatchNorm2d and type(chip[2]) is FrozenOtherwise
    x = torch.randn(2, 4, 5, 5)
    assert relative(chip[1](x), model[1](x)) < 1e-5
    (refused,) = chip.conversion_report.refused
    assert refused.name == "2" and "computes something different" in refused.reason
    nabn.program_chip(chip, seed=1)
    assert len(nabn.calibrate(chip, [images(3)], method="population").layers) == 1
