"""The direct readout against aihwkit's own, an identity matrix through the whole tile."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType
from aihwkit.simulator.tiles.inference import InferenceTileWithPeriphery
from torch import Tensor

import aihwkit_nabn.chip.drift_readout as readout
from aihwkit_nabn.chip.drift_readout import TypedReadout, direct_readout
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator import NoiseAwareRPUConfig
from aihwkit_nabn.simulator.product.vectors import CrossbarTile

NM, BM = NoiseManagementType, BoundManagementType
COMPENSATIONS = [GlobalDriftCompensation, GlobalDriftCompensationWithExactReference, PerColumnDriftCompensation]
QUIET = {"out_noise": 0.0, "bound_management": BM.NONE}
FORWARDS = {
    "perfect": IOParameters(is_perfect=True),
    "converters": IOParameters(**QUIET),
    "coarse": IOParameters(**QUIET, inp_res=1 / 5, out_res=1 / 9, inp_bound=0.8, out_bound=0.5),
    "asymmetry": IOParameters(**QUIET, inp_asymmetry=0.1, out_asymmetry=0.2),
    "constant": IOParameters(**QUIET, noise_management=NM.CONSTANT, nm_thres=0.7, out_scale=2.0),
    "max": IOParameters(**QUIET, noise_management=NM.MAX, nm_thres=0.6),
    "unmanaged": IOParameters(**QUIET, noise_management=NM.NONE),
    "iterative": IOParameters(out_noise=0.0),
    "iterative, clipped": IOParameters(out_noise=0.0, out_bound=0.4),
    "worst case, clipped": IOParameters(out_noise=0.0, out_bound=0.4, bound_management=BM.ITERATIVE_WORST_CASE),
}
NOISY = {
    "output noise": IOParameters(bound_management=BM.NONE),
    "output noise, default": IOParameters(),
    "rounding": IOParameters(**QUIET, inp_res=1 / 5, out_res=1 / 9, inp_sto_round=True, out_sto_round=True),
    "input noise": IOParameters(inp_noise=0.05, bound_management=BM.NONE),
    "input noise, default": IOParameters(inp_noise=0.05),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_CHUNK", 200)


def tile_of(
    forward: IOParameters,
    compensation: object,
    out_size: int = 23,
    in_size: int = 37,
    kind: type = TorchInferenceRPUConfig,
) -> object:
    config = kind(forward=copy.deepcopy(forward), noise_model=PCM())
    config.drift_compensation = compensation
    tile = config.tile_class(out_size, in_size, config)
    tile.set_weights(torch.randn(out_size, in_size, generator=torch.Generator().manual_seed(0)) * 0.3)
    return tile.eval()


def factors(tile: object, direct: bool, t_inference: float = 1e6) -> tuple[Tensor, Tensor]:
    with isolated_rng(1), direct_readout(tile) if direct else nullcontext():
        tile.program_weights()
        tile.drift_weights(t_inference)
    return tile.drift_baseline, tile.alpha


def reading(tile: object, direct: bool) -> Tensor:
    with direct_readout(tile) if direct else nullcontext():
        return tile.rpu_config.drift_compensation.init_baseline(tile)


def readings(tile: object) -> list[Tensor]:
    """Read a tile 200 times, first as aihwkit does, then directly."""
    with isolated_rng(5):
        return [
            torch.stack([reading(tile, direct).reshape(-1) for _ in range(200)]).double() for direct in (False, True)
        ]


def assert_same_means(theirs: Tensor, ours: Tensor) -> None:
    error = ((theirs.var(0) + ours.var(0)) / 200).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 4.5 * error).all()  # an output may be without noise


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_equals_aihwkits_readout(compensation, name, monkeypatch):
    tiles = [tile_of(FORWARDS[name], compensation()) for _ in range(2)]
    expected, theirs = factors(tiles[0], direct=False)
    # No identity matrix, nor any other pass through the tile:
    monkeypatch.setattr(type(tiles[1].tile), "forward", None)
    monkeypatch.setattr(torch, "eye", None)
    baseline, ours = factors(tiles[1], direct=True)
    assert torch.equal(tiles[0].tile.weight, tiles[1].tile.weight)
    assert baseline.shape == expected.shape and torch.allclose(baseline, expected, rtol=1e-5)
    assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5)
    assert (ours - 1).abs().max() > 0.1
    assert tiles[1].drift_readout_tensor is None and "_forward_drift_readout_tensor" not in vars(tiles[1])


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_equals_aihwkits_readout_in_distribution(compensation, name):
    tile = tile_of(NOISY[name], compensation())
    tile.program_weights()
    theirs, ours = readings(tile)
    if compensation is GlobalDriftCompensationWithExactReference:
        assert torch.allclose(theirs, ours, rtol=1e-5)
        return
    assert_same_means(theirs, ours)
    ratio = (ours.var(0).mean() / theirs.var(0).mean()).sqrt()
    assert abs(ratio - 1) < 4.5 / math.sqrt(2 * 200) * math.sqrt(2)


DROP = {"ir_drop": 1.0, "ir_drop_g_ratio": 20.0}
CROSSBAR = {
    **FORWARDS,
    "ir drop": IOParameters(**QUIET, **DROP),
    "both": IOParameters(**QUIET, **DROP, out_asymmetry=0.2),
}
CROSSBAR_NOISY = {
    "pcm read": IOParameters(**QUIET, w_noise=0.3, w_noise_type=WeightNoiseType.PCM_READ),
    "constant and output noise": IOParameters(
        out_noise=0.1, w_noise=0.2, w_noise_type=WeightNoiseType.ADDITIVE_CONSTANT, bound_management=BM.NONE
    ),
    "input noise, default": IOParameters(inp_noise=0.05),
    "output noise, default": IOParameters(),
}


@pytest.mark.parametrize("name", CROSSBAR)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_equals_the_pass_through_our_own_tile(compensation, name):
    tile = tile_of(CROSSBAR[name], compensation(), kind=NoiseAwareRPUConfig)
    assert type(tile.tile) is CrossbarTile
    tile.program_weights()
    expected, ours = reading(tile, direct=False), reading(tile, direct=True)
    assert ours.shape == expected.shape and torch.allclose(ours, expected, rtol=1e-4)


@pytest.mark.parametrize("name", CROSSBAR_NOISY)
def test_equals_the_pass_through_our_own_tile_in_distribution(name):
    tile = tile_of(CROSSBAR_NOISY[name], PerColumnDriftCompensation(), kind=NoiseAwareRPUConfig)
    tile.program_weights()
    theirs, ours = readings(tile)
    assert_same_means(theirs, ours)
    assert abs((ours.var(0).mean() / theirs.var(0).mean()).sqrt() - 1) < 4.5 / math.sqrt(200 * 23)


def test_individual_output_noise():
    tile = tile_of(
        IOParameters(out_noise=0.1, out_noise_std=0.5, bound_management=BM.NONE), PerColumnDriftCompensation()
    )
    tile.program_weights()
    assert_same_means(*readings(tile))


def test_double_precision():
    config = tile_of(FORWARDS["perfect"], None).rpu_config
    config.runtime.data_type = type(config.runtime.data_type).DOUBLE
    config.drift_compensation = TypedReadout(GlobalDriftCompensation(), torch.float64)
    tiles = [config.tile_class(5, 9, config) for _ in range(2)]
    for tile in tiles:
        tile.set_weights(torch.linspace(-1, 1, 45, dtype=torch.float64).view(5, 9))
    expected, ours = factors(tiles[0], direct=False), factors(tiles[1], direct=True)
    assert ours[1].dtype == torch.float64 and all(torch.allclose(*pair) for pair in zip(expected, ours, strict=True))


class OwnReadout(GlobalDriftCompensation):
    def readout(self, out_tensor: Tensor) -> Tensor:
        return out_tensor.square().mean()


class OwnVectors(GlobalDriftCompensation):
    def get_readout_tensor(self, in_size: int) -> Tensor:
        return torch.ones(1, in_size)


class OwnFactor(GlobalDriftCompensation):
    def apply(self, forward_output: Tensor, ref_value: Tensor) -> Tensor:
        return ref_value / self.readout(forward_output[:3])


class OwnBaseline(GlobalDriftCompensation):
    def init_baseline(self, tile: object) -> Tensor:
        return tile._forward_drift_readout_tensor(True).abs().max()


@pytest.mark.parametrize("compensation", [OwnReadout, OwnVectors, OwnFactor, OwnBaseline])
@pytest.mark.parametrize("name", ["perfect", "converters", "output noise"])
def test_compensations_of_the_users_own_are_left_to_aihwkit(compensation, name):
    forward = {**FORWARDS, **NOISY}[name]
    tiles = [tile_of(forward, compensation()) for _ in range(2)]
    expected = factors(tiles[0], direct=False)
    assert all(torch.equal(*pair) for pair in zip(expected, factors(tiles[1], direct=True), strict=True))


def test_vectors_given_by_hand_are_used():
    tile = tile_of(FORWARDS["perfect"], GlobalDriftCompensation())
    with direct_readout(tile):
        tile.program_weights()
        tile.drift_readout_tensor = torch.full((2, 37), 5.0)
        tile.drift_weights(0.0)
    expected = tile.drift_baseline / (5.0 * tile.tile.weight.sum(1)).abs().mean()
    assert torch.allclose(tile.alpha, expected)


def test_without_compensation_nothing_is_read():
    tile = tile_of(FORWARDS["perfect"], None)
    factors(tile, direct=True)
    assert tile.drift_baseline is None and tile.alpha == 1.0


@pytest.mark.parametrize("perfect", [True, False])
def test_compiled_tiles(perfect):
    forward = IOParameters(is_perfect=perfect, out_noise=0.0)
    config = InferenceRPUConfig(forward=forward, noise_model=PCM())
    try:
        tiles = [config.tile_class(23, 37, config) for _ in range(2)]
    except (RuntimeError, ImportError) as error:
        pytest.skip(f"aihwkit's compiled tile does not construct here: {error}")
    for tile in tiles:
        tile.set_weights(torch.randn(23, 37, generator=torch.Generator().manual_seed(0)) * 0.3)
        tile.eval()
    expected, ours = factors(tiles[0], direct=False), factors(tiles[1], direct=True)
    assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(expected, ours, strict=True))


def test_the_private_method_we_stand_in_for_is_there():
    assert callable(InferenceTileWithPeriphery._forward_drift_readout_tensor)
