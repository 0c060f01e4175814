"""Transposed convolutions against torch's own, on perfect tiles and on tiles with converters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn import NoiseAwareConvTranspose2d, NoiseAwareLayer
from tests.chips import without_noise

LAYERS = {
    "plain": (lambda: nn.ConvTranspose2d(3, 5, 2, stride=2), (2, 3, 5, 4)),
    "all at once": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (3, 2), (2, 1), (1, 0), groups=2, bias=False, dilation=(1, 2)),
        (2, 4, 5, 7),
    ),
    "depthwise": (lambda: nn.ConvTranspose2d(4, 8, 4, 2, 1, groups=4), (1, 4, 3, 5)),
    "padding beyond the kernel": (lambda: nn.ConvTranspose2d(3, 2, 2, stride=3, padding=2), (2, 3, 5, 6)),
    "1-d": (lambda: nn.ConvTranspose1d(6, 9, 5, 3, 1, 2, groups=3), (2, 6, 7)),
    "3-d": (lambda: nn.ConvTranspose3d(2, 3, (1, 2, 3), (1, 2, 2), (0, 1, 1), (0, 1, 0)), (2, 2, 3, 4, 3)),
    "unbatched": (lambda: nn.ConvTranspose2d(3, 4, 3, 2), (3, 4, 5)),
    "no sample": (lambda: nn.ConvTranspose2d(3, 4, 2, 2), (0, 3, 4, 5)),
}


@pytest.mark.parametrize("perfect", [True, False], ids=["native", "unfolded"])
@pytest.mark.parametrize("tiles", [(512, 512), (5, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_digital_layer(name, dtype, tiles, perfect, relative):
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().to(dtype).eval()
    analog = nabn.convert_to_noise_aware(layer, without_noise(tiles, perfect))
    assert isinstance(analog, NoiseAwareLayer)
    assert torch.equal(analog.weight, layer.weight)
    x = torch.randn(shape, dtype=dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    with torch.no_grad():
        assert relative(analog(x), layer(x)) < tolerance
        analog.alignment.set(
            torch.full((layer.out_channels,), 1.5).to(dtype), torch.arange(layer.out_channels).to(dtype)
        )
        assert relative(type(analog).to_digital(analog)(x), analog(x)) < tolerance


@pytest.mark.parametrize("perfect", [True, False], ids=["native", "unfolded"])
@pytest.mark.parametrize("size", [(10, 13), (11, 15), (2, 4, 10, 13)], ids=str)
def test_output_size(size, perfect, relative):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 4, (2, 3), stride=(2, 3), padding=(0, 1)).eval()
    analog = nabn.convert_to_noise_aware(layer, without_noise(perfect=perfect))
    x = torch.randn(2, 3, 5, 5)
    assert relative(analog(x, output_size=size), layer(x, output_size=size)) < 1e-5


def test_an_impossible_output_size_names_the_range():
    analog = nabn.convert_to_noise_aware(nn.ConvTranspose2d(3, 4, 2, stride=2), without_noise())
    x = torch.randn(2, 3, 5, 5)
    with pytest.raises(NabnError, match=r"output_size must lie between \[10, 10\] and \[11, 11\] .* got \(12, 10\)"):
        analog(x, output_size=(12, 10))
    with pytest.raises(NabnError, match="output_size must have 2 or 4 entries"):
        analog(x, output_size=(10,))


def test_converters_act_on_every_output_position():
    """The slow way: each output value is one row of the matrix times the inputs that reach it, both quantised."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1).eval()
    config = without_noise(perfect=False, inp_res=1 / 254, out_res=1 / 254, inp_bound=1.0, out_bound=10.0)
    analog = NoiseAwareConvTranspose2d.from_digital(layer, config).eval()
    x = torch.rand(1, 2, 4, 3) * 2 - 1
    step_in, step_out = 2.0 / 254, 20.0 / 254
    rounded = (x / step_in).round() * step_in
    expected = torch.zeros(3, 8, 6)
    # tiles without mapping scales multiply with the weights themselves
    weight, scale = layer.weight.detach(), next(analog.analog_tiles()).mapping_scales
    factor = 1.0 if scale is None else scale.view(-1, 1, 1)
    for out in range(3):
        for row in range(8):
            for col in range(6):
                for i in range(4):
                    for j in range(3):
                        a, b = row + 1 - 2 * i, col + 1 - 2 * j
                        if 0 <= a < 3 and 0 <= b < 3:
                            expected[out, row, col] += (rounded[0, :, i, j] * weight[:, out, a, b]).sum()
    expected = (expected / factor / step_out).round() * step_out * factor + layer.bias.detach().view(-1, 1, 1)
    with torch.no_grad():
        got = analog(x)[0]
    wrong = (got - expected).abs() > 1e-5
    assert float(wrong.float().mean()) < 0.02
    assert float((got - layer(x)[0]).detach().abs().max()) > 1e-3


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2)
        self.last = nn.ConvTranspose2d(6, 4, 2, stride=2)

    def forward(self, x):
        return self.last(self.up(self.down(x).relu()).relu())


def test_programming_and_calibration(images, relative):
    torch.manual_seed(0)
    net = Decoder().eval()
    analog = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    assert analog.conversion_report.analog_share == 1.0
    assert analog.conversion_report.n_weights == sum(p.numel() for p in net.parameters() if p.dim() > 1)
    x = images(6, shape=(3, 10, 14))
    nabn.program_chip(analog, seed=1)
    first = analog.up.weight
    nabn.program_chip(analog, seed=2)
    assert not torch.equal(first, analog.up.weight)
    nabn.program_chip(analog, seed=1)
    assert torch.equal(first, analog.up.weight)
    before = copy.deepcopy(net.state_dict())
    batches = [images(8, seed, (3, 10, 14)) + 2 for seed in (1, 2)]
    x = x + 2
    errors = torch.zeros(3)
    for seed in range(4):
        nabn.program_chip(analog, seed=seed)
        errors[0] += (analog(x) - net(x)).square().mean().detach()
        for i, options in enumerate(({"method": "paired"}, {"method": "distill", "steps": 20})):
            nabn.calibrate(analog, batches, reference=net, **options)
            errors[i + 1] += (analog(x) - net(x)).square().mean().detach()
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[0]
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    aligned = analog(x)
    nabn.fold_calibration(analog)
    assert relative(analog(x), aligned) < 1e-5


def test_a_reference_of_another_shape_is_refused(images):
    net = Decoder().eval()
    analog = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset()), seed=0)
    other = Decoder().eval()
    other.last = nn.ConvTranspose2d(6, 5, 2, stride=2)
    with pytest.raises(CalibrationError, match="layer 'last'"):
        nabn.calibrate(analog, [images(2, shape=(3, 8, 8))], reference=other)
