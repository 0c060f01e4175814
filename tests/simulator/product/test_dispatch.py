"""The analog product against aihwkit's own layers and against torch's operators."""

from __future__ import annotations

import warnings

import pytest
import torch
from aihwkit.nn import AnalogConv2d, AnalogLinear
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import (
    NoiseManagementType,
    WeightModifierType,
)
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn import NoiseAwareConv1d, NoiseAwareConv2d, NoiseAwareConv3d, NoiseAwareLinear
from aihwkit_nabn.seeding import RandomStream
from aihwkit_nabn.simulator.product import dispatch
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.tiles import effective_weight, is_perfect
from tests.chips import with_converters
from tests.tensors import same_steps

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning")

TILES = [(512, 512), (10, 3)]
NOISE_MANAGEMENT = [NoiseManagementType.NONE, NoiseManagementType.ABS_MAX]


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("noise_management", NOISE_MANAGEMENT)
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 1), "bias": False},
        {"kernel_size": 3, "dilation": (1, 2), "padding": 2},
    ],
    ids=str,
)
def test_convolutions_equal_aihwkits_own(geometry, noise_management, tiles):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 7, **geometry).eval()
    theirs = AnalogConv2d.from_digital(conv, with_converters(noise_management=noise_management, tiles=tiles)).eval()
    ours = NoiseAwareConv2d.from_digital(conv, with_converters(noise_management=noise_management, tiles=tiles)).eval()
    x = torch.randn(2, 3, 8, 9) * 0.5
    with torch.no_grad():
        assert same_steps(ours(x), theirs(x), 5e-3)
        error = (ours(x) - conv(x)).abs().max() / conv(x).abs().max()
    assert 1e-4 < error < 0.5  # the converters are at work


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("noise_management", NOISE_MANAGEMENT)
@pytest.mark.parametrize("shape", [(4, 21), (2, 3, 21), (21,), (0, 21)], ids=str)
def test_linear_layers_equal_aihwkits_own(shape, noise_management, tiles):
    torch.manual_seed(0)
    linear = nn.Linear(21, 7).eval()
    theirs = AnalogLinear.from_digital(linear, with_converters(noise_management=noise_management, tiles=tiles)).eval()
    ours = NoiseAwareLinear.from_digital(linear, with_converters(noise_management=noise_management, tiles=tiles)).eval()
    x = torch.randn(shape)
    with torch.no_grad():
        if x.numel() and x.dim() > 1:
            assert same_steps(ours(x), theirs(x), 5e-3)
        else:
            batched = ours(x.reshape(-1, 21)) if x.numel() else linear(x)
            torch.testing.assert_close(ours(x), batched.reshape(*shape[:-1], 7))


@pytest.mark.parametrize("noise_management", NOISE_MANAGEMENT)
def test_a_grouped_convolution_equals_one_aihwkit_layer_per_group(noise_management):
    torch.manual_seed(0)
    groups = 3
    conv = nn.Conv2d(6, 9, 3, groups=groups, padding=1, stride=2).eval()
    ours = NoiseAwareConv2d.from_digital(conv, with_converters(noise_management=noise_management)).eval()
    parts = []
    x = torch.randn(2, 6, 7, 8)
    for group in range(groups):
        part = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        rows = slice(3 * group, 3 * group + 3)
        part.weight.data, part.bias.data = conv.weight.data[rows].clone(), conv.bias.data[rows].clone()
        analog = AnalogConv2d.from_digital(part, with_converters(noise_management=noise_management)).eval()
        parts.append(analog(x[:, 2 * group : 2 * group + 2]))
    assert same_steps(ours(x), torch.cat(parts, 1), 5e-3)


def test_grouped_tiles_with_input_ranges_and_drift_factors(relative):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 9, 3, groups=3).eval()
    rpu_config = with_converters(tiles=(7, 4), inp_res=-1.0, out_res=-1.0, out_bound=0.0)
    rpu_config.pre_post.input_range.enable = True
    rpu_config.pre_post.input_range.init_value = 10.0
    rpu_config.drift_compensation = TorchInferenceRPUConfig().drift_compensation
    ours = NoiseAwareConv2d.from_digital(conv, rpu_config).eval()
    x = torch.randn(2, 6, 5, 6)
    assert relative(ours(x), conv(x)) < 1e-5
    for tile in ours.analog_tiles():
        tile.alpha = torch.tensor([2.0])
    expected = 2 * (conv(x) - conv.bias.view(-1, 1, 1)) + conv.bias.view(-1, 1, 1)
    assert relative(ours(x), expected) < 1e-5


FINE = {"inp_res": -1.0, "out_res": -1.0, "inp_bound": 100.0, "out_bound": 1e4}


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize(
    ("digital", "analog", "arguments", "shape"),
    [
        (nn.Conv1d, NoiseAwareConv1d, {"kernel_size": 5, "stride": 2, "padding": 3}, (2, 4, 17)),
        (nn.Conv1d, NoiseAwareConv1d, {"kernel_size": 4, "padding": "same", "dilation": 3}, (2, 4, 17)),
        (nn.Conv1d, NoiseAwareConv1d, {"kernel_size": 3, "groups": 2}, (4, 9)),
        (nn.Conv2d, NoiseAwareConv2d, {"kernel_size": (2, 3), "padding": "same"}, (2, 4, 6, 7)),
        (nn.Conv2d, NoiseAwareConv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (2, 4, 6, 7)),
        (nn.Conv2d, NoiseAwareConv2d, {"kernel_size": 3, "groups": 4, "bias": False}, (2, 4, 6, 7)),
        (nn.Conv2d, NoiseAwareConv2d, {"kernel_size": 3}, (0, 4, 6, 7)),
        (nn.Conv2d, NoiseAwareConv2d, {"kernel_size": 3}, (4, 6, 7)),
        (nn.Conv3d, NoiseAwareConv3d, {"kernel_size": (1, 2, 3), "stride": (1, 2, 1)}, (2, 4, 3, 6, 5)),
        (nn.Conv3d, NoiseAwareConv3d, {"kernel_size": 2, "dilation": 2, "padding": 1, "groups": 2}, (2, 4, 3, 6, 5)),
    ],
)
def test_unfolding_equals_torchs_convolution_where_the_converters_are_fine(
    digital, analog, arguments, shape, tiles, relative
):
    torch.manual_seed(0)
    conv = digital(4, 8, **arguments).eval()
    layer = analog.from_digital(conv, with_converters(tiles=tiles, **FINE)).eval()
    assert not is_perfect(layer.analog_module)
    x = torch.randn(shape)
    assert relative(layer(x), conv(x)) < 1e-5


def test_the_unfolded_path_and_the_native_path_agree_on_a_chip(net, images, relative):
    native = nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset())
    unfolded = nabn.convert_to_noise_aware(
        net, nabn.presets.PCMPreset(forward=with_converters(out_noise=0.0, **FINE).forward)
    )
    for chip in (native, unfolded):
        nabn.program_chip(chip, seed=0, t_inference="1d")
    assert relative(unfolded(images(3)), native(images(3))) < 1e-4
    assert torch.equal(unfolded.grouped.weight, native.grouped.weight)


def test_effective_weight_holds_scales_and_the_drift_factor():
    torch.manual_seed(0)
    linear = nn.Linear(21, 7)
    layer = NoiseAwareLinear.from_digital(linear, with_converters(tiles=(10, 3), is_perfect=True)).eval()
    torch.testing.assert_close(effective_weight(layer.analog_module), linear.weight)
    layer = NoiseAwareLinear.from_digital(linear, TorchInferenceRPUConfig(forward=IOParameters(is_perfect=True)))
    next(layer.analog_tiles()).alpha = torch.tensor([1.5])
    torch.testing.assert_close(layer.eval().weight, 1.5 * linear.weight.detach())
    torch.testing.assert_close(layer.train().weight, linear.weight.detach())


def test_training_draws_the_weight_modifier():
    torch.manual_seed(0)
    linear = nn.Linear(21, 400)
    rpu_config = with_converters(is_perfect=True)
    rpu_config.mapping.weight_scaling_omega = 0.0
    rpu_config.modifier.type = WeightModifierType.ADD_NORMAL
    rpu_config.modifier.std_dev = 0.1
    layer = NoiseAwareLinear.from_digital(linear, rpu_config)
    noise = layer.train().weight - linear.weight.detach()
    expected = 0.1 * linear.weight.abs().max()
    standard_error = expected / (2 * noise.numel()) ** 0.5
    assert abs(noise.std() - expected) < 4 * standard_error
    assert torch.equal(layer.eval().weight, linear.weight.detach())
    rpu_config.modifier.per_batch_sample = True
    layer = NoiseAwareLinear.from_digital(linear, rpu_config)
    assert not is_perfect(layer.train().analog_module) and is_perfect(layer.eval().analog_module)
    rows = layer.train()(torch.ones(5, 21))
    assert rows.std(0).min() > 0  # each sample has its own weights


def test_compiled_tiles(relative):
    rpu_config = with_converters(kind=InferenceRPUConfig, is_perfect=True, tiles=(10, 3))
    try:
        layer = NoiseAwareLinear.from_digital(nn.Linear(21, 7), rpu_config)
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"aihwkit's compiled tile does not construct here: {error}")
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 5, 3, padding=1).eval(), nn.Linear(21, 7).eval()
    layer = NoiseAwareConv2d.from_digital(conv, rpu_config).eval()
    x = torch.randn(2, 3, 6, 7)
    assert relative(layer(x), conv(x)) < 1e-5
    layer = NoiseAwareLinear.from_digital(linear, rpu_config).eval()
    x = torch.randn(2, 4, 21)
    assert relative(layer(x), linear(x)) < 1e-5
    torch.testing.assert_close(layer.weight, linear.weight.detach())
    rpu_config.drift_compensation = TorchInferenceRPUConfig().drift_compensation
    layer = NoiseAwareLinear.from_digital(linear, rpu_config).eval()
    for tile in layer.analog_tiles():
        tile.alpha = torch.tensor([1.5])
    torch.testing.assert_close(layer.weight, 1.5 * linear.weight.detach())
    for unsupported in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(3, 4, 3)):
        form = NoiseAwareConv2d if isinstance(unsupported, nn.Conv2d) else NoiseAwareConv1d
        with pytest.raises(
            ConversionError, match="takes only 2-d convolutions without groups; use a torch-tile preset"
        ):
            form.from_digital(unsupported, rpu_config)


def test_read_noise_comes_from_the_layers_own_stream():
    torch.manual_seed(0)
    layer = NoiseAwareConv2d.from_digital(nn.Conv2d(3, 4, 3), with_converters(out_noise=0.1)).eval()
    x = torch.randn(2, 3, 5, 5)
    layer.read_noise = RandomStream(5)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)
    layer.read_noise.restart()
    assert torch.equal(layer(x), first)
    layer.read_noise.restart(6)
    assert not torch.equal(layer(x), first)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"kernel_size": (3,), "padding": (2,), "dilation": (2,), "stride": (3,)}, (2, 4, 11)),
        ({"kernel_size": (2, 3), "padding": "same", "dilation": (1, 2), "stride": (1, 1)}, (2, 4, 5, 7)),
        ({"kernel_size": (1, 2, 2), "padding": "valid", "dilation": (1,) * 3, "stride": (2, 1, 1)}, (2, 4, 3, 4, 5)),
    ],
)
def test_unfolded_vectors_times_the_matrix_are_the_convolution(arguments, shape, relative):
    linear_map = LinearMap(spatial_dims=len(shape) - 2, groups=2, **arguments)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    depth = 2 * torch.Size(linear_map.kernel_size).numel()
    weight = torch.randn(6, depth, generator=generator)
    vectors, size = linear_map.unfold(x)
    assert vectors.shape == (2, 2, torch.Size(size).numel(), depth)
    out = torch.einsum("ngpk,gok->ngop", vectors, weight.view(2, 3, depth)).reshape(2, 6, *size)
    assert relative(out, linear_map.apply(x, weight, None)) < 1e-5


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_where_memory_runs_out_fewer_vectors_at_a_time_give_the_same(kind: str, monkeypatch) -> None:
    config = with_converters(noise_management=NoiseManagementType.ABS_MAX, tiles=(10, 3))
    torch.manual_seed(0)
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(12, 7)).eval(), torch.randn(900, 12)
    else:
        model, x = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).eval(), torch.randn(2, 3, 20, 20)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(model, config), 0)
    expected, original, sizes = chip(x), dispatch.vector_product, []

    def short_of_memory(vectors, *args):
        sizes.append(len(vectors))
        if len(vectors) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(vectors, *args)

    monkeypatch.setattr(dispatch, "vector_product", short_of_memory)
    monkeypatch.setattr(dispatch, "FEWEST_VALUES", 64)
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory: unfolding .* values at a time"):
        got = chip(x)
    assert max(sizes) > 100 >= sizes[-1]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_other_errors_and_no_memory_at_all_come_through(monkeypatch) -> None:
    config = with_converters(noise_management=NoiseManagementType.ABS_MAX)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(nn.Sequential(nn.Linear(4, 2)).eval(), config), 0)
    for error in (RuntimeError("something else"), MemoryError()):

        def fails(*args, error=error):
            raise error

        monkeypatch.setattr(dispatch, "vector_product", fails)
        with torch.no_grad(), warnings.catch_warnings(), pytest.raises(type(error)):
            warnings.simplefilter("ignore")
            chip(torch.ones(3, 4))
