"""Columns copied over the free rows of their tile, against tiles that are driven row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator import NoiseAwareRPUConfig, build_preset, parse_preset
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json
from aihwkit_nabn.simulator.product.crossbar import analog_results, readout_of
from aihwkit_nabn.simulator.product.physics.ir_drop import IRDrop
from aihwkit_nabn.simulator.product.physics.noise import Noise
from aihwkit_nabn.simulator.product.replication import ReplicatedArray, copies_of, number_of_copies
from aihwkit_nabn.simulator.product.straight_through import straight_through_product
from aihwkit_nabn.simulator.product.tile_forward import through_tiles
from aihwkit_nabn.simulator.product.tiles import effective_weight, tile_rows, tiles_of
from tests.chips import tiled_layer
from tests.tensors import same_steps

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(12, 12, 3, groups=12, padding=1), (2, 12, 9, 7)),
    (nn.Conv2d(8, 16, 5, groups=8, stride=2, padding="valid", bias=False), (2, 8, 11, 12)),
    (nn.Conv2d(18, 24, (3, 1), groups=3, padding=(1, 0)), (2, 18, 7, 8)),
    (nn.Conv2d(5, 7, 1), (5, 9, 10)),
    (nn.Conv1d(10, 9, 4, stride=3), (4, 10, 40)),
    (nn.Conv3d(4, 6, (2, 3, 3), padding=1), (2, 4, 5, 6, 7)),
    (nn.ConvTranspose2d(8, 10, 3, stride=2, padding=1, output_padding=1), (2, 8, 7, 5)),
    (nn.ConvTranspose1d(8, 12, 4, stride=2, groups=4), (3, 8, 11)),
    (nn.Linear(21, 6), (2, 3, 21)),
]
NAMES = [f"{type(module).__name__}{index}" for index, (module, _) in enumerate(LAYERS)]
CONVERTERS = "gaussian:sigma=0,inp_bits=8,out_bits=8,out_bound=200,input_range=2.5"


def row_by_row(layer: Any, x: Tensor) -> Tensor:
    """Through each tile's own forward pass, every row driven with its input."""
    with torch.no_grad():
        return through_tiles(x, layer.analog_module, layer.linear_map)


@pytest.mark.parametrize("setting", ["true", "3"])
@pytest.mark.parametrize("mapping", ["pcm:noise_scale=0,drift_scale=0", "gaussian:sigma=0"])
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=NAMES)
def test_a_chip_without_noise_is_the_digital_layer(
    module: nn.Module, shape: tuple[int, ...], mapping: str, setting: str
) -> None:
    analog = nabn.convert_to_noise_aware(nn.Sequential(module), parse_preset(f"{mapping},replicate_rows={setting}"))
    nabn.program_chip(analog, 0)
    x, layer = torch.randn(shape), analog[0]
    n_rows = layer.analog_module.in_size
    assert copies_of(layer.analog_module) == (512 // n_rows if setting == "true" else 3)
    assert all(tile.in_size == n_rows * copies_of(layer.analog_module) for tile in tiles_of(layer))
    with torch.no_grad():
        assert torch.allclose(analog(x), module(x), atol=2e-6)
        assert torch.allclose(layer.to_digital(layer)(x), module(x), atol=2e-6)
        assert torch.allclose(row_by_row(layer, x), module(x), atol=2e-6)
        assert torch.allclose(layer.weight, module.weight, atol=1e-6)
        assert torch.allclose(layer.train()(x), module(x), atol=2e-6)
    assert torch.allclose(layer.analog_module.get_weights()[0], effective_weight(layer.analog_module), atol=1e-6)


@pytest.mark.parametrize("out_rows", [512, 5])
@pytest.mark.parametrize("setting", ["true", "2"])
@pytest.mark.parametrize(
    "forward",
    [{}, {"ir_drop": 5.0}, {"ir_drop": 3.0, "noise_management": NoiseManagementType.ABS_MAX}],
    ids=["converters", "ir_drop", "each vector"],
)
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=NAMES)
@pytest.mark.filterwarnings("ignore:forward.noise_management")
def test_products_are_those_of_tiles_driven_row_by_row(
    module: nn.Module, shape: tuple[int, ...], forward: dict[str, Any], setting: str, out_rows: int
) -> None:
    layer = tiled_layer(module, f"{CONVERTERS},replicate_rows={setting}", (512, out_rows), **forward)
    assert copies_of(layer.analog_module) > 1
    x = torch.randn(shape)
    with torch.no_grad():
        quick, exact = layer(x), layer.to_digital(layer)(x)
    assert same_steps(quick, row_by_row(layer, x))
    assert 1e-4 < (quick - exact).norm() / exact.norm() < 0.6


@pytest.mark.parametrize("kind", ["pcm_read", "additive_constant"])
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=NAMES)
def test_currents_are_those_of_all_rows(module: nn.Module, shape: tuple[int, ...], kind: str) -> None:
    layer = tiled_layer(module, f"{CONVERTERS},w_noise=0.1,w_noise_type={kind},ir_drop=1,replicate_rows=true")
    array, linear_map, io = layer.analog_module, layer.linear_map, tiles_of(layer)[0].rpu_config.forward
    x = torch.randn(shape)
    x = x if linear_map.spatial_dims == 0 or x.dim() == linear_map.spatial_dims + 2 else x[None]
    with torch.no_grad():
        (row,) = tile_rows(array)
        result, readout, flows = analog_results(x, row, io, linear_map, readout_of(row, io))
        assert [type(effect) for effect in readout.effects] == [IRDrop, Noise]
        vectors = x[:, None] if linear_map.spatial_dims == 0 else linear_map.unfold(x)[0]
        n = array.out_size // linear_map.groups
        for group in range(linear_map.groups):
            # every row of the tile by itself
            levels = (vectors[:, group] / 2.5).clamp(-1, 1).mul(127).round() / 127
            rows = levels.repeat(*[1] * (levels.dim() - 1), row.copies)
            weight = row.weight[group * n : (group + 1) * n]
            step = 2 * 200.0 / 254
            near = 1 - torch.arange(weight.shape[1]) / weight.shape[1]
            expected = {
                "result": rows @ weight.T / step,
                "variance": (rows**2 @ (weight.abs() if kind == "pcm_read" else torch.ones_like(weight)).T)
                * 0.01
                / step**2,
                "total": rows.abs() @ weight.abs().T * weight.shape[1] / io.ir_drop_g_ratio,
                "drop": rows @ (weight * (1 - near**2)).T / step,
            }
            (total, drop), (variance,) = flows
            for name, values in {"result": result, "total": total, "drop": drop, "variance": variance}.items():
                own = values if linear_map.spatial_dims == 0 else values.flatten(2).transpose(1, 2)
                own = own[..., group * n : (group + 1) * n].reshape(expected[name].shape)
                assert torch.allclose(own, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max())), (
                    name
                )


def test_products_with_gradients_are_the_same() -> None:
    layer = tiled_layer(LAYERS[0][0], f"{CONVERTERS},ir_drop=20,replicate_rows=true")
    x = torch.randn(LAYERS[0][1], requires_grad=True)
    io = tiles_of(layer)[0].rpu_config.forward
    out = straight_through_product(
        x, tile_rows(layer.analog_module), io, layer.linear_map, bias=layer.analog_module.bias
    )
    with torch.no_grad():
        assert same_steps(out.detach(), layer(x))
    out.sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize("setting", ["gaussian:sigma=0.1,relative_to=column,", "pcm:", "reram_wan:"])
def test_every_copy_has_devices_of_its_own_whose_errors_average_out(setting: str) -> None:
    layer = nn.Conv2d(200, 200, 3, groups=200)
    errors = {}
    for copies in (1, 16, 56):
        chip = nabn.convert_to_noise_aware(nn.Sequential(layer), parse_preset(f"{setting}replicate_rows={copies}"))
        nabn.program_chip(chip, 1)
        errors[copies] = float((chip[0].weight - layer.weight).std())
        (tile,) = tiles_of(chip)
        held = tile.tile.weight.detach().view(200, copies, 9)
        assert torch.equal(
            tile.reference_combined_weights.view(200, copies, 9)[:, :1].expand_as(held).contiguous(),
            tile.reference_combined_weights.view(200, copies, 9),
        )
        assert copies == 1 or float(held.std(1).mean()) > 0
    assert errors[16] == pytest.approx(errors[1] / 4, rel=0.3)
    assert errors[56] == pytest.approx(errors[1] / 56**0.5, rel=0.3)


def test_output_noise_weighs_less_by_the_number_of_copies() -> None:
    layer, x = nn.Conv2d(50, 50, 3, groups=50), torch.randn(20, 50, 12, 12)
    errors = {}
    for copies in (1, 10):
        analog = tiled_layer(layer, f"gaussian:sigma=0,out_noise=0.04,input_range=4,replicate_rows={copies}")
        with torch.no_grad():
            errors[copies] = float((analog(x) - analog.to_digital(analog)(x)).std())
    assert errors[10] == pytest.approx(errors[1] / 10, rel=0.05)


def test_a_shared_module_stays_shared_and_copies_of_models_keep_their_copies() -> None:
    shared = nn.Conv2d(6, 6, 3, groups=6, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    chip: Any = nabn.convert_to_noise_aware(model, parse_preset("pcm:replicate_rows=true"))
    assert chip[0] is chip[2]
    nabn.program_chip(chip, 4, "1d")
    x = torch.randn(2, 6, 5, 5)
    twin: Any = copy.deepcopy(chip)
    other: Any = nabn.convert_to_noise_aware(model, parse_preset("pcm:replicate_rows=true"))
    other.load_state_dict(chip.state_dict())
    with torch.no_grad():
        expected = chip(x)
        assert torch.equal(twin(x), expected) and torch.equal(other(x), expected)
    nabn.drift_chip(chip, "1y")
    nabn.drift_chip(twin, "1y")
    with torch.no_grad():
        assert torch.equal(twin(x), chip(x)) and not torch.equal(chip(x), expected)


def test_drift_is_compensated_with_copies_as_without() -> None:
    layer, x = nn.Conv2d(100, 100, 3, groups=100), torch.randn(4, 100, 8, 8)
    errors = {}
    for copies in (1, 56):
        chip: Any = nabn.convert_to_noise_aware(nn.Sequential(layer), parse_preset(f"pcm:replicate_rows={copies}"))
        nabn.program_chip(chip, 0, "1y")
        with torch.no_grad():
            errors[copies] = float((chip(x) - layer(x)).norm() / layer(x).norm())
        assert 1.1 < float(tiles_of(chip)[0].alpha) < 4.0
    assert errors[56] < 0.4 * errors[1]


def test_weights_can_be_set_anew() -> None:
    layer = tiled_layer(nn.Conv2d(4, 4, 3, groups=4), "gaussian:sigma=0,replicate_rows=true")
    for _ in range(2):
        matrix = torch.randn(4, 9)
        layer.analog_module.set_weights(matrix, torch.ones(4))
        assert torch.allclose(effective_weight(layer.analog_module), matrix, atol=1e-6)
        assert torch.allclose(layer.analog_module.get_weights()[0], matrix, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "setting", "n", "copies"),
    [
        (512, True, 9, 56),
        (512, True, 256, 2),
        (512, True, 257, 1),
        (512, True, 600, 1),
        (512, 4, 9, 4),
        (512, 4, 200, 2),
    ]
    + [(0, 7, 9, 7), (512, False, 9, 1), (512, 1, 9, 1)],
)
def test_columns_are_copied_as_often_as_they_fit_or_as_told(rows: int, setting: Any, n: int, copies: int) -> None:
    config = NoiseAwareRPUConfig(replicate_rows=setting)
    config.mapping.max_input_size = rows
    assert number_of_copies(config, n) == copies


@pytest.mark.parametrize("value", [0, -1, 2.0, "all", None])
def test_a_bad_number_of_copies_is_refused(value: Any) -> None:
    with pytest.raises(NabnError, match=r"replicate_rows must be true, false or a largest number .*, got"):
        build_preset("pcm", replicate_rows=value)


def test_unlimited_tiles_have_no_free_rows() -> None:
    config = parse_preset("pcm:replicate_rows=true")
    config.mapping.max_input_size = 0
    with pytest.raises(NabnError, match="max_input_size"):
        number_of_copies(config, 9)
    with pytest.raises(NabnError, match="max_input_size"):
        build_preset("pcm", replicate_rows=True, mapping=config.mapping)


def test_the_option_goes_through_text_and_files() -> None:
    config = parse_preset("pcm+stuck:p_off=0.01,replicate_rows=true")
    assert config.replicate_rows is True
    assert config_from_json(config_to_json(config)).replicate_rows is True
    assert config_from_json(config_to_json(parse_preset("crossbar:replicate_rows=8"))).replicate_rows == 8
    assert not isinstance(tiled_layer(nn.Linear(300, 4), "pcm:replicate_rows=true").analog_module, ReplicatedArray)
