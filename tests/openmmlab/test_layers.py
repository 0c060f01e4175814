"""mmcv's layers on tiles: deformable convolutions and the wrappers for empty inputs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv.cnn.bricks import wrappers
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.openmmlab import layers as analog_forms
from tests.chips import without_noise

GEOMETRIES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "grouped": {"kernel_size": 3, "groups": 2, "deform_groups": 2, "padding": 1},
    "groups across": {"kernel_size": 2, "groups": 3, "deform_groups": 2, "stride": 2},
}
KINDS = [DeformConv2d, DeformConv2dPack, ModulatedDeformConv2d, ModulatedDeformConv2dPack]


def build(kind, geometry, dtype=torch.float32):
    torch.manual_seed(0)
    layer = kind(6, 12, **geometry).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("conv_offset") or parameter.dim() == 1:
                parameter.normal_(0, 0.3)
    return layer


def inputs(layer, shape=(2, 6, 7, 8)):
    """Offsets of some pixels, some of them out of the image; masks between 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=layer.weight.dtype)
    if hasattr(layer, "conv_offset"):
        return (x,)
    size = nn.functional.conv2d(
        x[:1, :1], x.new_zeros(1, 1, *layer.kernel_size), None, layer.stride, layer.padding, layer.dilation
    ).shape[2:]
    n = layer.deform_groups * layer.kernel_size[0] * layer.kernel_size[1]
    offset = torch.randn(shape[0], 2 * n, *size, generator=generator, dtype=x.dtype) * 2
    if isinstance(layer, ModulatedDeformConv2d):
        return x, offset, torch.rand(shape[0], n, *size, generator=generator, dtype=x.dtype)
    return x, offset


@pytest.mark.parametrize("perfect", [True, False], ids=["native", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_deformable_convolutions_equal_mmcvs(kind, geometry, dtype, perfect, relative):
    layer = build(kind, GEOMETRIES[geometry], dtype)
    analog = nabn.convert_to_noise_aware(layer, without_noise((11, 4), perfect))
    assert isinstance(analog, NoiseAwareLayer)
    assert torch.equal(analog.weight, layer.weight)
    args = inputs(layer)
    with torch.no_grad():
        expected = layer(*args)
        # Offsets that fall between two pixels make the outcome sensitive to the last bit of a float.
        assert relative(analog(*args), expected) < (1e-5 if dtype is torch.float32 else 1e-11)
        if not perfect:
            return
        assert relative(type(analog).to_digital(analog)(*args), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_no_sample_a_large_batch_and_small_inputs(kind):
    layer = build(kind, GEOMETRIES["plain"])
    for perfect in (True, False):
        analog = nabn.convert_to_noise_aware(layer, without_noise(perfect=perfect))
        args = inputs(layer, (35, 6, 7, 5))
        assert analog(*(x[:0] for x in args)).shape == (0, 12, 7, 5)
        with torch.no_grad():
            parts = [analog(*(x[part] for x in args)) for part in (slice(0, 32), slice(32, 35))]
            torch.testing.assert_close(analog(*args), torch.cat(parts), rtol=1e-4, atol=1e-5)
        small = inputs(layer, (2, 6, 2, 2))
        if kind is DeformConv2d:
            torch.testing.assert_close(analog(*small), layer(*small), rtol=1e-4, atol=1e-5)


def test_converters_quantise_the_samples(relative):
    layer = build(DeformConv2d, GEOMETRIES["grouped"])
    args = inputs(layer)
    outputs = {
        bits: nabn.convert_to_noise_aware(
            layer, without_noise(perfect=False, inp_res=1 / (2**bits - 2), inp_bound=4.0)
        )(*args)
        for bits in (4, 8, 12)
    }
    errors = [relative(out, layer(*args)) for out in outputs.values()]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


@pytest.mark.parametrize("kind", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_both_convolutions_of_a_pack_are_layers_of_their_own(kind, images, relative):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), build(kind, GEOMETRIES["plain"]), nn.Conv2d(12, 2, 1)).eval()
    analog = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.06))
    assert set(named_analog_layers(analog)) == {"0", "1", "1.conv_offset", "2"}
    report = analog.conversion_report
    assert {entry.name: entry.n_tiles for entry in report.converted}["1"] == 1
    assert report.n_weights == sum(p.numel() for p in net.parameters() if p.dim() > 1)
    again = nabn.convert_to_noise_aware(analog, nabn.presets.GaussianWeightNoisePreset())
    assert again.conversion_report.n_weights == report.n_weights and len(again.conversion_report.converted) == 4
    nabn.program_chip(analog, seed=0)
    first = analog[1].weight.clone(), analog[1].conv_offset.weight.clone()
    nabn.program_chip(analog, seed=1)
    assert not torch.equal(first[0], analog[1].weight) and not torch.equal(first[1], analog[1].conv_offset.weight)
    x = images(6, shape=(3, 8, 9)) + 1
    before = after = 0.0
    with torch.no_grad():
        for seed in range(3):
            nabn.program_chip(analog, seed=seed)
            before += float((analog(x) - net(x)).square().mean())
            nabn.calibrate(analog, [images(8, s, (3, 8, 9)) + 1 for s in (1, 2)], reference=net)
            after += float((analog(x) - net(x)).square().mean())
        assert after < 0.95 * before
        aligned = analog(x)
        nabn.fold_calibration(analog)
        assert relative(analog(x), aligned) < 1e-4


def test_a_pack_with_its_offsets_excluded(relative):
    layer = nn.Sequential(build(ModulatedDeformConv2dPack, GEOMETRIES["plain"]))
    analog = nabn.convert_to_noise_aware(layer, without_noise(), exclude="0.conv_offset")
    assert type(analog[0].conv_offset) is nn.Conv2d and list(named_analog_layers(analog)) == ["0"]
    args = inputs(layer[0])
    assert relative(analog(*args), layer(*args)) < 1e-5


def test_version_one_has_no_bias_to_fold_into():
    analog = nabn.convert_to_noise_aware(build(DeformConv2d, GEOMETRIES["plain"]), without_noise())
    analog.alignment.set(torch.ones(12), torch.ones(12))
    with pytest.raises(ConversionError, match="DeformConv2d of mmcv has no bias"):
        analog_forms.NoiseAwareDeformConv2d.to_digital(analog)


WRAPPED = {
    "conv": (lambda: wrappers.Conv2d(3, 4, 3, padding=1), (3, 9, 7), (4, 9, 7)),
    "transposed": (lambda: wrappers.ConvTranspose2d(3, 4, 2, stride=2), (3, 5, 7), (4, 10, 14)),
    "transposed 3-d": (lambda: wrappers.ConvTranspose3d(3, 4, 2, stride=2), (3, 2, 5, 7), (4, 4, 10, 14)),
    "linear": (lambda: wrappers.Linear(5, 4), (5,), (4,)),
}


@pytest.mark.parametrize("perfect", [True, False], ids=["native", "unfolded"])
@pytest.mark.parametrize("name", WRAPPED)
def test_mmcvs_wrappers_with_and_without_samples(name, perfect, relative):
    torch.manual_seed(0)
    make, shape, out_shape = WRAPPED[name]
    layer = make().eval()
    analog = nabn.convert_to_noise_aware(layer, without_noise(perfect=perfect))
    assert isinstance(analog, NoiseAwareLayer)
    x = torch.randn(2, *shape)
    assert relative(analog(x), layer(x)) < 1e-5
    assert analog(x[:0]).shape == (0, *out_shape)


@pytest.mark.parametrize("perfect", [True, False])
def test_guided_anchorings_convolution_takes_its_mask(perfect: bool, relative) -> None:
    from mmcv.ops import MaskedConv2d

    torch.manual_seed(0)
    layer = MaskedConv2d(4, 6, 3, padding=1).eval()
    preset = nabn.presets.GaussianWeightNoisePreset(sigma=0.0 if perfect else 0.1)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(nn.ModuleList([layer]), preset), seed=1)[0]
    x, mask = torch.randn(1, 4, 7, 5), torch.randn(1, 7, 5)
    digital = type(chip).to_digital(chip)
    assert isinstance(digital, MaskedConv2d)
    for given in (mask, -mask.abs(), None):
        assert torch.allclose(chip(x, given), digital(x, given), atol=1e-5)
    assert torch.allclose(chip(x, mask), layer(x, mask), atol=1e-5) == perfect
