"""A range of the ADC for each tile: the same as tiles whose settings have that range, and carried wherever chips go."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.nn.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.nn.input_ranges import output_bounds, set_output_bounds
from aihwkit_nabn.simulator import build_preset, parse_preset
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json
from aihwkit_nabn.simulator.product.straight_through import straight_through_product
from aihwkit_nabn.simulator.product.tiles import tile_rows, tiles_of
from tests.chips import chip_of, tiled_layer
from tests.networks import classifier
from tests.simulator.product.test_replication import LAYERS, NAMES, row_by_row
from tests.tensors import equal, same_steps

SETTING = "gaussian:sigma=0,inp_bits=8,out_bits=6,out_bound=10,input_range=2.5,output_range=true"


def layer_of(module: nn.Module, setting: str, rows: int = 512, **forward: Any) -> Any:
    layer = tiled_layer(module, setting, (rows, 5), **forward)
    n = sum(tile.out_size for tile in tiles_of(layer))
    set_output_bounds(layer, torch.linspace(1.5, 25.0, n))
    return layer


@pytest.mark.parametrize("ir_drop", [0.0, 5.0])
@pytest.mark.parametrize(
    "mapping", [dict(rows=7), dict(rows=512), dict(setting=f"{SETTING},replicate_rows=3")], ids=str
)
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=NAMES)
def test_products_are_those_of_tiles_whose_settings_have_the_range(
    module: nn.Module, shape: tuple[int, ...], mapping: dict[str, Any], ir_drop: float
) -> None:
    layer = layer_of(module, **{"setting": SETTING, **mapping}, ir_drop=ir_drop)
    x = torch.randn(shape)
    with torch.no_grad():
        quick = layer(x)
    slow = row_by_row(layer, x)
    assert same_steps(quick, slow)
    before = output_bounds(nn.Sequential(layer))["0"]
    set_output_bounds(layer, torch.full_like(before, 10.0))
    plain = row_by_row(layer, x)
    assert not same_steps(plain, slow)
    for tile in tiles_of(layer):  # the settings' own range
        tile.tile.output_bound = None
    assert same_steps(row_by_row(layer, x), plain)


def test_an_output_is_rounded_and_cut_off_by_its_own_range() -> None:
    """Written out for a matrix product."""
    layer = layer_of(nn.Linear(9, 4, bias=False), SETTING)
    x = 2.0 * torch.randn(300, 9)
    (tile,) = tiles_of(layer)
    sums = (x / 2.5).clamp(-1, 1).mul(127).round().div(127) @ tile.tile.weight.detach().T
    bounds = tile.tile.output_bound
    steps = 2 * bounds / 62
    expected = (sums / steps).round().mul(steps).minimum(bounds).maximum(-bounds) * 2.5 * tile.mapping_scales
    with torch.no_grad():
        assert same_steps(layer(x), expected)
    assert bool(((sums.abs() > bounds).any(0) == (bounds < 3)).all())


def test_products_with_gradients_are_the_same() -> None:
    layer = layer_of(nn.Conv2d(18, 24, 3, groups=3), SETTING, rows=20)
    x, io = torch.randn(2, 18, 6, 7), tiles_of(layer)[0].rpu_config.forward
    rows, bias = tile_rows(layer.analog_module), layer.analog_module.bias
    with torch.no_grad():
        assert same_steps(straight_through_product(x, rows, io, layer.linear_map, bias=bias), layer(x))


@pytest.mark.parametrize(("bound", "noise"), [(2.0, 0.05), (10.0, 0.05), (30.0, 0.15)])
@pytest.mark.parametrize("read_noise", [0.0, 0.1])
def test_output_noise_grows_with_a_range_above_the_settings_and_is_kept_below(
    bound: float, noise: float, read_noise: float
) -> None:
    setting = f"gaussian:sigma=0,out_noise=0.05,out_bound=10,input_range=1,w_noise={read_noise},output_range=true"
    analog: Any = nabn.convert_to_noise_aware(
        nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False)), parse_preset(setting)
    )
    set_output_bounds(analog[0], torch.full((4,), bound))
    x = torch.full((50, 4, 20, 20), 0.7)
    scales = tiles_of(analog[0])[0].mapping_scales.view(-1, 1, 1)
    with torch.no_grad():
        error = (analog(x) - analog[0].to_digital(analog[0])(x)) / scales
        slow = row_by_row(analog[0], x) / scales
    expected = (noise**2 + read_noise**2 * 0.7**2) ** 0.5
    assert float(error.std()) == pytest.approx(expected, rel=0.02)
    assert float(slow.std(dim=(0, 2, 3)).mean()) == pytest.approx(expected, rel=0.02)


CROSSBAR = "crossbar:output_range=true,replicate_rows=true"


def network() -> nn.Sequential:
    return classifier(n=8, padding=1, more=lambda: [nn.Conv2d(8, 8, 3, groups=8)])


def images() -> list[Tensor]:
    return [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def outputs(chip: nn.Module) -> Tensor:
    nabn.set_read_noise_seed(chip, 0)
    with torch.no_grad():
        return torch.cat([chip(x) for x in images()])


def test_ranges_come_from_images_and_go_where_the_chip_goes(tmp_path: Path) -> None:
    model = network()
    chip = chip_of(model, CROSSBAR, inputs=images())
    bounds = output_bounds(chip)
    assert set(bounds) == {"0", "3", "5"} and [bound.numel() for bound in bounds.values()] == [8, 8, 4]
    assert all(float((bound - 10).abs().min()) > 0.1 for bound in bounds.values())
    assert len(bounds["0"].unique()) == len(bounds["5"].unique()) == 1 and len(bounds["3"].unique()) > 4
    expected = outputs(chip)
    nabn.save_chip(chip, tmp_path / "chip.nabn")
    loaded = nabn.load_chip(model, tmp_path / "chip.nabn")
    other = chip_of(model, f"{CROSSBAR},input_range=1")
    assert not torch.equal(outputs(other), expected)
    load_calibration_tensors(other, calibration_tensors(chip))
    fresh = nabn.convert_to_noise_aware(model, parse_preset(f"{CROSSBAR},input_range=1"))
    fresh.load_state_dict(chip.state_dict())
    for twin in (loaded, copy.deepcopy(chip), other, fresh):
        assert all(torch.equal(bound, output_bounds(twin)[name]) for name, bound in bounds.items())
        assert torch.equal(outputs(twin), expected)
    for again in (chip, loaded):
        nabn.drift_chip(again, "1y")
    assert torch.equal(outputs(loaded), outputs(chip))


def test_stored_ranges_must_be_one_for_each_tile() -> None:
    chip = chip_of(network(), CROSSBAR, inputs=images())
    tensors = {**calibration_tensors(chip), "3.output_bounds": torch.ones(2)}
    before = output_bounds(chip)
    with pytest.raises(CalibrationError, match="layer '3' does not fit: output bounds must be 8, one for each output"):
        load_calibration_tensors(chip, tensors)
    assert all(torch.equal(bound, before[name]) for name, bound in output_bounds(chip).items())
    for wrong in (torch.zeros(8), torch.full((8,), torch.nan), -torch.ones(8)):
        with pytest.raises(NabnError, match="output bounds must be finite numbers > 0"):
            set_output_bounds(chip[3], wrong)
    with pytest.raises(NabnError, match="must be 0, one for each output of tiles with output_range"):
        set_output_bounds(chip_of(network(), "crossbar", inputs=images())[3], torch.ones(8))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pcm:output_range=true", "there is no bounded ADC; give out_bits"),
        ("pcm:inp_bits=8,output_range=true", "there is no bounded ADC; give out_bits"),
        ("crossbar:input_range=false,output_range=true", "needs static input ranges"),
        ("crossbar:output_range=3", "output_range must be true or false, got 3"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        parse_preset(setting)


def test_the_option_goes_through_files() -> None:
    assert config_from_json(config_to_json(build_preset("crossbar", output_range=True))).output_range is True


def test_the_drift_readout_has_the_range_of_the_settings() -> None:
    model = network()
    chips = [
        nabn.convert_to_noise_aware(model, parse_preset("crossbar:input_range=2,output_range=true")) for _ in range(2)
    ]
    for name, bounds in output_bounds(chips[1]).items():
        set_output_bounds(chips[1].get_submodule(name), torch.full_like(bounds, 90.0))
    factors = [[tile.alpha for tile in tiles_of(nabn.program_chip(chip, 0, "1y"))] for chip in chips]
    assert equal(*factors)
