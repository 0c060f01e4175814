"""A readout effect is one file: registered, it acts in every product, in the drift read-out and on gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn import native
from aihwkit_nabn.chip.drift_readout import direct_readout
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.simulator import ReadoutEffect, build_preset, parse_preset, register_readout_effect
from aihwkit_nabn.simulator.config.io_options import READOUT_EFFECTS
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json
from aihwkit_nabn.simulator.product.crossbar import TileRow
from aihwkit_nabn.simulator.product.tiles import tile_rows, tiles_of
from tests import chips
from tests.chips import tiled
from tests.simulator.product.test_replication import row_by_row
from tests.tensors import same_steps

FILE = '''
from dataclasses import dataclass
import torch
from aihwkit_nabn.simulator import ReadoutEffect, register_readout_effect

@register_readout_effect("gain_error")
@dataclass(frozen=True)
class GainError(ReadoutEffect):
    """Every output is amplified a little differently."""
    strength: float

    def draw_outputs(self, n):
        return 1.0 + self.strength * torch.rand(n)

    def apply(self, y, flows, at):
        return y * at.outputs["gain_error"]

@register_readout_effect("offset")
@dataclass(frozen=True)
class Offset(ReadoutEffect):
    """A constant, in units of one input at full scale on the largest weight."""
    size: float
    sign: int = 1

    def apply(self, y, flows, at):
        return y + self.sign * self.size / at.unit

@register_readout_effect("leak")
@dataclass(frozen=True)
class Leak(ReadoutEffect):
    """A part of the total current is lost."""
    share: float

    def flows(self, currents):
        return (currents.total(1.0),)

    def apply(self, y, flows, at):
        return at.add(y, flows[0] / at.unit, 1.0, -self.share)
'''
EXACT = "gaussian:sigma=0,drift_compensation=global,out_bound=1000,input_range=2"
ALL = "gain_error=0.3,offset=0.1,leak=0.01"
X = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("effects") / "readout_effects_of_the_test.py"
    path.write_text(FILE)
    import_extension(str(path))
    yield
    for name in ("gain_error", "offset", "leak"):
        READOUT_EFFECTS.unregister(name)


@pytest.fixture(autouse=True, params=["1", "0"], ids=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABN_NATIVE", request.param)


def chip_of(setting: str, seed: int = 3, groups: int = 1) -> Any:
    """Return a layer on several tiles side by side, in two tile rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, groups=groups, bias=False))
    return chips.chip_of(model, tiled(setting, 36, 4), seed)


def written_out(chip: Any, x: Tensor, results: Callable[[Tensor, TileRow], Tensor]) -> Tensor:
    """Return the sum over the tile rows of what `results` makes of each row's exact results."""
    total = torch.zeros(())
    for row in tile_rows(chip[0].analog_module):
        matrix = torch.zeros(10, 54)
        matrix[:, row.columns.start : row.columns.stop] = row.weight.detach()
        exact = chip[0].linear_map.apply(x.clamp(-row.input_range, row.input_range) / row.input_range, matrix, None)
        total = total + results(exact, row) * (row.scale * row.input_range).view(-1, 1, 1)
    return total


def settings_and_results() -> list[Any]:
    def gain_error(y: Tensor, row: TileRow) -> Tensor:
        return y * row.outputs["gain_error"].view(-1, 1, 1)

    def rounded(y: Tensor, row: TileRow) -> Tensor:
        step = 2 * 1023.75 / (2**13 - 2)
        return ((y + 0.1) / step).round() * step

    return [
        pytest.param(f"{EXACT},gain_error=0.3", gain_error, id="gain error"),
        pytest.param(f"{EXACT},offset=0.1", lambda y, row: y + 0.1, id="offset"),
        pytest.param(
            f"{EXACT},out_bits=13,offset=0.1".replace("1000", "1023.75"), rounded, id="offset in front of an ADC"
        ),
    ]


@pytest.mark.parametrize(("setting", "results"), settings_and_results())
def test_products_and_their_gradients(setting: str, results: Callable[[Tensor, TileRow], Tensor]) -> None:
    chip = chip_of(setting)
    with torch.no_grad():
        expected = written_out(chip, X, results)
        assert same_steps(chip(X), expected)
        assert same_steps(chip(X.to(memory_format=torch.channels_last)), expected)
        assert same_steps(torch.jit.trace(chip, (X,), check_trace=False)(X), expected)
    assert not same_steps(expected, written_out(chip, X, lambda y, row: y))
    assert same_steps(row_by_row(chip[0], X), expected)
    passing = (lambda y, row: y) if "bits" in setting else results  # straight through the ADC
    leaves = [X.clone().requires_grad_() for _ in range(2)]
    weights = torch.linspace(-1, 1, expected.numel()).view(expected.shape)
    (chip(leaves[0]) * weights).sum().backward()
    (written_out(chip, leaves[1], passing) * weights).sum().backward()
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-5)  # type: ignore[arg-type]


QUIET = "crossbar:out_noise=0,w_noise=0"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "forward", [EXACT, QUIET, f"{QUIET},input_range=false", f"{QUIET},output_range=true", "crossbar:"]
)
def test_all_ways_agree(forward: str, groups: int) -> None:
    """Also where other effects act; with noise in the mean."""
    chip, n = chip_of(f"{forward},{ALL}".replace(":,", ":"), groups=groups), 200 if forward == "crossbar:" else 1
    many = X[:1].repeat(n, 1, 1, 1)
    with torch.no_grad():
        found = [chip(many), row_by_row(chip[0], many), torch.jit.trace(chip, (many,), check_trace=False)(many)]
    found.append(chip(many.clone().requires_grad_()).detach())
    for other in found[1:]:
        if n == 1:
            assert same_steps(other, found[0])
        else:
            spread = (other.var(0) + found[0].var(0)) / n
            assert (other.mean(0) - found[0].mean(0)).abs().max() < 5 * spread.max().sqrt()


@pytest.mark.parametrize("effect", ["gain_error=0.3", "offset=0.1", "leak=0.01", ALL])
@pytest.mark.parametrize("forward", [EXACT, QUIET])
def test_the_drift_readout(forward: str, effect: str) -> None:
    chip, plain = chip_of(f"{forward},{effect}"), chip_of(forward)
    for tile, other in zip(tiles_of(chip[0].analog_module), tiles_of(plain[0].analog_module), strict=True):
        compensation = tile.rpu_config.drift_compensation
        tile.drift_readout_tensor = None
        through_the_tile = compensation.init_baseline(tile)
        with direct_readout(tile):
            assert torch.allclose(compensation.init_baseline(tile), through_the_tile, rtol=1e-5)
        assert not torch.allclose(other.drift_baseline, through_the_tile, rtol=1e-4)


def test_the_c_code_reads_out_where_it_knows_all_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(native, "read_out", lambda *args: calls.append(args))
    with torch.no_grad():
        chip_of("crossbar")(X)
        known = len(calls)
        chip_of(f"crossbar:{ALL}")(X)
    assert len(calls) == known and bool(known) == native.is_available()


def test_values_of_outputs_are_the_chips(tmp_path: Path) -> None:
    def gains(chip: Any) -> Tensor:
        return torch.cat([row.outputs["gain_error"] for row in tile_rows(chip[0].analog_module)])

    chip, again, other = (chip_of(f"crossbar:{ALL}", seed) for seed in (3, 3, 4))
    found = gains(chip)
    assert found.shape == (20,) and len(found.unique()) == 20  # each tile has its own
    assert torch.equal(gains(again), found) and not torch.equal(gains(other), found)
    nabn.save_chip(chip, tmp_path / "chip")
    loaded = nabn.load_chip(nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, bias=False)), tmp_path / "chip")
    other.load_state_dict(chip.state_dict())
    for twin in (loaded, other, copy.deepcopy(chip), nabn.drift_chip(chip, "1y")):
        assert torch.equal(gains(twin), found)
    nabn.drift_chip(loaded, "1y")
    with torch.no_grad():
        for twin in (chip, loaded):
            nabn.set_read_noise_seed(twin, 1)
        assert torch.equal(chip(X), loaded(X))


def test_options_go_through_files_and_copies() -> None:
    config = build_preset("crossbar", offset={"size": 0.2, "sign": -1}, leak=0.01)
    for twin in (config_from_json(config_to_json(config)), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin.forward == config.forward and [effect.name for effect in twin.forward.effects] == ["offset", "leak"]
    assert type(parse_preset("crossbar:offset=none").forward) is type(parse_preset("crossbar").forward)
    assert not parse_preset("pcm:leak=0.1").forward.is_perfect


def test_mistakes_are_told() -> None:
    for name in ("out_bits", "sigma", "mapping"):
        with pytest.raises(NabnError, match=f"{name!r} cannot be an option of presets"):
            register_readout_effect(name)(type("Other", (ReadoutEffect,), {"apply": lambda *_: None}))
    with pytest.raises(NabnError, match="must derive from ReadoutEffect and define apply"):
        register_readout_effect("nothing")(ReadoutEffect)
    with pytest.raises(NabnError, match="offset must be a value or the fields of Offset, got {'wrong': 1}"):
        build_preset("crossbar", offset={"wrong": 1})
    theirs = TorchInferenceRPUConfig(forward=build_preset("crossbar", offset=0.2, ir_drop=0, w_noise=0).forward)
    with pytest.raises(NabnError, match="layer '0': TorchSimulatorTile knows no readout effects"):
        nabn.program_chip(nabn.convert_to_noise_aware(nn.Sequential(nn.Linear(3, 2)), theirs), 0)
    with pytest.raises(NabnError, match="did you mean 'gain_error'"):
        parse_preset("crossbar:gain_eror=0.1")
