"""The product without unfolding against the slow obvious ways: aihwkit's tiles, and unfolding into them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType
from torch import Tensor, nn

from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.seeding import RandomStream
from aihwkit_nabn.simulator import NoiseAwareRPUConfig
from aihwkit_nabn.simulator.product import crossbar, dispatch
from aihwkit_nabn.simulator.product.straight_through import straight_through_product
from aihwkit_nabn.simulator.product.tile_forward import through_tiles
from aihwkit_nabn.simulator.product.tiles import tile_rows, tiles_of
from tests.chips import with_converters
from tests.simulator.product.test_replication import LAYERS as COPIED
from tests.simulator.product.test_replication import row_by_row
from tests.tensors import same_steps


def config(kind: type = TorchInferenceRPUConfig, rows: int = 0, input_range: float | None = 2.5, **forward: Any) -> Any:
    return with_converters(kind, (rows, rows and 24), input_range, **forward)


def column_step(layer: Any) -> float:
    """The largest value that one ADC step of the layer is worth."""
    io = tiles_of(layer.analog_module)[0].rpu_config.forward
    return max(
        2.0 * io.out_bound / io.out_res * row.scale.max().item() * (row.input_range or 1.0)
        for row in tile_rows(layer.analog_module)
    )


LAYERS = [
    (nn.Conv2d(16, 20, 3, padding=1), (3, 16, 13, 11)),
    (nn.Conv2d(16, 20, 3, stride=2, padding=2, dilation=2, bias=False), (2, 16, 15, 9)),
    (nn.Conv2d(12, 12, 5, groups=12, padding="same"), (2, 12, 9, 9)),
    (nn.Conv2d(5, 7, 3, padding=1, padding_mode="reflect"), (5, 9, 10)),
    *(layer for layer in COPIED if not isinstance(layer[0], nn.Linear)),
]


@pytest.mark.parametrize("values_at_once", [2**20, 1])
@pytest.mark.parametrize("rows", [0, 45, 36, 17])
@pytest.mark.parametrize(("module", "shape"), LAYERS)
def test_convolutions_equal_unfolding_into_aihwkits_tiles(
    module: nn.Module, shape: tuple[int, ...], rows: int, values_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossbar, "VALUES_AT_ONCE", values_at_once)
    torch.manual_seed(rows + len(shape))
    module = copy.deepcopy(module)
    module.reset_parameters()  # type: ignore[operator]
    layer: Any = convert_to_noise_aware(nn.Sequential(module), config(rows=rows))[0]
    x = torch.randn(shape)
    with torch.no_grad():
        ours = layer(x)
    theirs = row_by_row(layer, x)
    # Not the very same sums: a few inputs or outputs on an edge, each by one step.
    assert same_steps(ours, theirs, share=3e-4)
    assert (ours - theirs).abs().max() <= 1.01 * column_step(layer) * len(tile_rows(layer.analog_module))
    assert layer.to_digital(layer)(x).sub(ours).norm() < 0.2 * ours.norm()


@pytest.mark.parametrize("settings", [{}, {"noise_management": NoiseManagementType.CONSTANT, "nm_thres": 2.0}])
@pytest.mark.parametrize("rows", [0, 200])
def test_a_large_convolution_equals_aihwkits_layer(settings: dict[str, Any], rows: int) -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(4, 64, 28, 28)
    given = config(rows=rows, input_range=None if settings else 3.0, **settings)
    with torch.no_grad():
        ours = convert_to_noise_aware(conv, given)(x)
        theirs = convert_to_analog(copy.deepcopy(conv), given).eval()(x)
    assert same_steps(ours, theirs, share=1e-4)


def test_layouts_and_threads_give_the_same_numbers() -> None:
    torch.manual_seed(1)
    layer: Any = convert_to_noise_aware(nn.Conv2d(32, 48, 3, padding=1), config(rows=144, out_noise=0.04))
    x = torch.randn(6, 32, 40, 44)
    outputs = []
    threads = torch.get_num_threads()
    try:
        for count, mode in ((1, torch.no_grad), (3, torch.no_grad), (3, torch.inference_mode)):
            torch.set_num_threads(count)
            layer.read_noise.restart(5)
            with mode():
                outputs.append(layer(x).clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5) and torch.equal(outputs[1], outputs[2])
    with torch.no_grad():
        assert not torch.equal(layer(x), outputs[0])  # the stream has moved on
    quiet: Any = convert_to_noise_aware(nn.Conv2d(32, 48, 3, padding=1), config(rows=144))
    with torch.no_grad():
        first, last = quiet(x), quiet(x.to(memory_format=torch.channels_last))
        empty = quiet(x[:0])
    assert same_steps(last, first, share=1e-4)
    assert empty.shape == (0, 48, 40, 44)


@pytest.mark.parametrize("rows", [0, 36])
def test_noise_has_the_mean_and_the_variance_it_should(rows: int) -> None:
    torch.manual_seed(2)
    noisy = config(rows=rows, out_noise=0.3, out_res=0.0, inp_res=0.0, out_bound=100.0)
    layer: Any = convert_to_noise_aware(nn.Conv2d(8, 16, 3, padding=1), noisy)
    x = torch.rand(1, 8, 5, 4).expand(3000, -1, -1, -1)
    with torch.no_grad():
        y = layer(x)
        expected = unfolded_without_noise(layer, x[:1])
    variance = sum((0.3 * row.scale * row.input_range) ** 2 for row in tile_rows(layer.analog_module))
    error = (y.mean(0) - expected[0]) / (variance.sqrt().view(-1, 1, 1) / math.sqrt(3000))
    assert error.abs().max() < 4.5 and abs(error.mean().item()) < 3.0 / math.sqrt(error.numel())
    ratio = y.var(0) / variance.view(-1, 1, 1)  # standard error sqrt(2 / 3000) each
    assert (ratio - 1.0).abs().max() < 4.5 * math.sqrt(2 / 3000)


def unfolded_without_noise(layer: Any, x: Tensor) -> Tensor:
    twin = copy.deepcopy(layer)
    for tile in tiles_of(twin.analog_module):
        tile.rpu_config.forward.out_noise = 0.0
        tile.tile.set_config(tile.rpu_config)
    return row_by_row(twin, x)


def linear_pair(**forward: Any) -> tuple[nn.Module, AnalogLinear, Tensor]:
    """One layer on our tile and on aihwkit's compiled one."""
    torch.manual_seed(4)
    digital = nn.Linear(64, 24)
    theirs = convert_to_analog(copy.deepcopy(digital), config(InferenceRPUConfig, rows=0, input_range=None, **forward))
    ours = convert_to_noise_aware(digital, config(NoiseAwareRPUConfig, rows=0, input_range=None, **forward))
    return ours, theirs.eval(), torch.rand(64)


def test_pcm_read_noise_equals_the_compiled_tile() -> None:
    settings = {"w_noise": 0.2, "w_noise_type": WeightNoiseType.PCM_READ, "out_res": 0.0, "inp_res": 0.0}
    ours, theirs, x = linear_pair(**settings)
    n = 6000
    with torch.no_grad():
        a, b = ours(x.expand(n, -1)), theirs(x.expand(n, -1))
    spread = (a.var(0) / n + b.var(0) / n).sqrt()
    assert ((a.mean(0) - b.mean(0)) / spread).abs().max() < 4.0
    assert (a.var(0) / b.var(0) - 1.0).abs().max() < 4.0 * math.sqrt(4 / n)
    constant, _, _ = linear_pair(**{**settings, "w_noise_type": WeightNoiseType.ADDITIVE_CONSTANT})
    scale = tile_rows(constant.analog_module)[0].scale  # type: ignore[arg-type]
    with torch.no_grad():
        measured = constant(x.expand(n, -1)).std(0) / scale
    assert (measured / (0.2 * x.norm()) - 1.0).abs().max() < 4.0 / math.sqrt(2 * n)


def test_ir_drop_equals_the_compiled_tile() -> None:
    ours, theirs, _ = linear_pair(ir_drop=1.0, ir_drop_g_ratio=2000.0, out_res=0.0)
    x = torch.randn(50, 64).clamp(-1, 1)
    with torch.no_grad():
        a, b, plain = ours(x), theirs(x), linear_pair(out_res=0.0)[0](x)
    assert torch.allclose(a, b, atol=1e-5) and not torch.allclose(a, plain, atol=1e-2)


@pytest.mark.parametrize(
    "forward", [{"ir_drop": 1.0, "ir_drop_g_ratio": 500.0}, {"inp_asymmetry": 0.1, "out_asymmetry": 0.2}]
)
@pytest.mark.parametrize("rows", [0, 40])
def test_convolutions_equal_the_product_of_their_vectors(forward: dict[str, Any], rows: int) -> None:
    """IR drop and asymmetries act on a convolution as on each of its windows."""
    torch.manual_seed(5)
    layer: Any = convert_to_noise_aware(
        nn.Conv2d(8, 12, 3, padding=1), config(NoiseAwareRPUConfig, rows=rows, **forward)
    )
    x = torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        assert same_steps(layer(x), row_by_row(layer, x), share=1e-3)


def test_bound_management_is_per_vector_and_equals_the_compiled_tile() -> None:
    settings = {
        "bound_management": BoundManagementType.ITERATIVE,
        "noise_management": NoiseManagementType.ABS_MAX,
        "out_bound": 1.5,
    }
    ours, theirs, _ = linear_pair(**settings)
    x = torch.randn(400, 64) * torch.logspace(-2, 1, 400).view(-1, 1)
    with torch.no_grad():
        together, compiled = ours(x), theirs(x)
        alone = torch.cat([ours(one) for one in x.split(1)])
    assert torch.equal(together, alone)
    # Rounding errors decide whether a value in the last level counts as beyond the bound: whole vectors differ then.
    assert same_steps(together, compiled, share=1e-2)


@pytest.mark.parametrize("forward", [{}, {"noise_management": NoiseManagementType.ABS_MAX}, {"inp_noise": 1e-6}])
def test_the_unfolded_way_in_small_parts(forward: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    monkeypatch.setattr(dispatch, "VALUES_AT_ONCE", 500)
    forward = {"bound_management": BoundManagementType.ITERATIVE, **forward}
    layer: Any = convert_to_noise_aware(nn.Conv2d(8, 12, 3, padding=1, groups=2), config(rows=20, **forward))
    x = torch.randn(3, 8, 6, 7)
    dispatch._say_once.cache_clear()
    with torch.no_grad(), pytest.warns(UserWarning, match="looks at each input vector"):
        ours = layer(x)
    assert ours.sub(layer.to_digital(layer)(x)).norm() < 0.1 * ours.norm()
    with torch.no_grad():
        assert same_steps(layer(x), ours, share=1e-2)
        single = torch.cat([layer(one) for one in x.split(1)])
        assert same_steps(single, ours, share=1e-2)
        assert same_steps(layer(x[0]), ours[0], share=1e-2)


def test_gradients_are_those_of_aihwkits_tile() -> None:
    torch.manual_seed(7)
    layer: Any = convert_to_noise_aware(nn.Conv2d(8, 12, 3, padding=1), config(rows=36))
    x = torch.randn(2, 8, 9, 7)
    x[(x.abs() - 2.5).abs() < 0.05] = 0.0  # within half a step of the bound the last bit decides
    grads = []
    for way in ("ours", "theirs"):
        leaf = x.clone().requires_grad_()
        if way == "ours":
            out = straight_through_product(
                leaf,
                tile_rows(layer.analog_module),
                layer.analog_module.array[0][0].rpu_config.forward,
                layer.linear_map,
                bias=layer.bias,
            )
        else:
            out = through_tiles(leaf, layer.analog_module, layer.linear_map)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-4 * grads[1].abs().max().item())
    with torch.no_grad():
        assert same_steps(layer(x), out.detach(), share=1e-3)


def test_what_cannot_be_simulated_is_refused() -> None:
    for field, value in (("out_nonlinearity", 0.1), ("r_series", 0.2), ("w_noise", 0.1)):
        with pytest.raises(Exception, match=field):
            convert_to_noise_aware(nn.Linear(4, 4), config(NoiseAwareRPUConfig, **{field: value}))


def test_the_stream_gives_integers_again_after_a_restart() -> None:
    stream = RandomStream(3)
    first = [stream.integer() for _ in range(3)]
    stream.restart()
    assert first == [stream.integer() for _ in range(3)] and len(set(first)) == 3
