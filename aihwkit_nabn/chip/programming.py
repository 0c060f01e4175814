"""One chip: a draw of programming noise on a model's tiles, at one time after programming."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.chip.drift_readout import direct_readout, match_readout_dtype
from aihwkit_nabn.chip.read_noise import layers_of, restart_read_noise
from aihwkit_nabn.chip.shared import share_programming
from aihwkit_nabn.chip.variation import begin_variation, rewind_variation
from aihwkit_nabn.chip.written import note_written, was_trained, weights_on
from aihwkit_nabn.errors import NabnError, NotProgrammedError, check_count
from aihwkit_nabn.nn.calibration_state import clear_calibration
from aihwkit_nabn.nn.inference_mode import outside_inference_mode
from aihwkit_nabn.nn.input_ranges import warn_of_initial_ranges
from aihwkit_nabn.noise import WeightNoiseModel
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.simulator.product.scaled_gradient import keep_scaled_gradient
from aihwkit_nabn.simulator.product.vectors import CrossbarTile
from aihwkit_nabn.times import parse_time

# Packages whose noise models draw through torch, never through numpy or Python.
_DRAW_THROUGH_TORCH = ("aihwkit", "aihwkit_nabn")


@dataclass(frozen=True, kw_only=True)
class ChipState:
    """Which chip a model holds.

    Args:
        seed: Of the programming noise.
        t_inference: Seconds after programming.
        cycle: How often the chip was programmed before.
    """

    seed: int
    t_inference: float
    cycle: int = 0


@outside_inference_mode()
def program_chip(model: nn.Module, seed: int, t_inference: float | str = 0.0, *, cycle: int = 0) -> nn.Module:
    """Program the chip of this `seed` onto the model's tiles and let it drift to `t_inference`, in place.

    The same seed gives the same chip whatever ran before, on every machine; the caller's random generators stay where
    they were. Each tile draws from a stream of its own, so a layer's noise does not depend on the layers around it. A
    calibration of an earlier chip is removed, and the read-noise stream starts anew from this seed. Noise that varies
    while the network runs starts with no sample processed.

    Args:
        model: An analog model, ours or one of aihwkit's `convert_to_analog` with inference tiles.
        seed: Integer >= 0.
        t_inference: Seconds after programming, or a text such as ``"1d"``.
        cycle: Which programming of this chip: another cycle draws programming noise, drift and read noise anew
            (cycle-to-cycle) and leaves what belongs to the chip (device-to-device spread, faults, gains, temperature).

    Returns:
        The model.

    Raises:
        ConversionError: the model has no inference tiles.
        NabnError: seed, cycle or time is out of range, also of the noise model's, or a layer's weights hold NaN or
            infinite values; nothing has been changed then.
    """
    seed, cycle = check_seed("seed", seed), check_count("cycle", cycle)
    seconds = parse_time(t_inference)
    layers = layers_of(model)
    tiles_of = _tiles_of(layers)
    _check_settings(tiles_of, seconds)
    _check_weights(tiles_of)
    warn_of_initial_ranges(model, stacklevel=4)  # the caller, behind the decorator
    clear_calibration(model)
    rewind_variation(model)
    model.__dict__.pop("chip_state", None)  # there is none until all tiles are written
    for name, tiles in tiles_of.items():
        _set_reference(tiles)
        _set_layer_max(tiles)
        for tile_name, tile in tiles.items():
            match_readout_dtype(tile)
            keep_scaled_gradient(tile)
            told = _set_chip(tile, seed, (name, tile_name), cycle)
            if getattr(tile.rpu_config.forward, "effects", ()):
                with private_rng(derive_seed(seed, "outputs", name, tile_name)):
                    tile.tile.draw_outputs()
            with direct_readout(tile):
                with _tile_rng(tile, _in_cycle(derive_seed(seed, "program", name, tile_name), 0 if told else cycle)):
                    tile.program_weights()
                share_programming(tile)
                _drift_tile(tile, _in_cycle(derive_seed(seed, "drift", name, tile_name), cycle), seconds)
    begin_variation(model, _all_tiles(tiles_of))
    model.__dict__["chip_state"] = ChipState(seed=seed, t_inference=seconds, cycle=cycle)
    restart_read_noise(layers, _in_cycle(seed, cycle))
    return model


@outside_inference_mode()
def drift_chip(model: nn.Module, t_inference: float | str) -> nn.Module:
    """Let the chip that is on the model drift to another time, in place; the devices stay the same ones.

    Calibration, if any, stays too: what it is worth at the new time is for the caller to see.

    Raises:
        NotProgrammedError: `program_chip` has not been called, or the weights have been trained since.
        NabnError: the time is out of range; nothing has been changed then.
    """
    seconds = parse_time(t_inference)
    state = chip_state(model)
    layers = _tiles_of(layers_of(model))
    _check_settings(layers, seconds)
    n_samples = rewind_variation(model)
    for name, tiles in layers.items():
        if any(was_trained(tile) for tile in tiles.values()):
            raise NotProgrammedError(f"layer {name!r} was trained after it was programmed; call program_chip again")
    for name, tiles in layers.items():
        for tile_name, tile in tiles.items():
            with direct_readout(tile):
                _drift_tile(tile, _in_cycle(derive_seed(state.seed, "drift", name, tile_name), state.cycle), seconds)
    begin_variation(model, _all_tiles(layers), n_samples)
    model.__dict__["chip_state"] = replace(state, t_inference=seconds)
    return model


def chip_state(model: nn.Module) -> ChipState:
    """Return which chip the model holds.

    Raises:
        NotProgrammedError: none that `program_chip` programmed.
    """
    state = getattr(model, "chip_state", None)
    if not isinstance(state, ChipState):
        raise NotProgrammedError("the model holds no chip yet; call program_chip(model, seed=...) first")
    return state


def check_programmed(model: nn.Module) -> None:
    """Raise unless every tile has been programmed, by `program_chip` or by aihwkit's own functions.

    Raises:
        NotProgrammedError: names the first layer that has not.
    """
    for name, tiles in _tiles_of(layers_of(model)).items():
        if any(tile.programmed_weights is None for tile in tiles.values()):
            raise NotProgrammedError(f"layer {name!r} is not programmed; call program_chip(model, seed=...) first")


#: The tiles of one layer by name.
_Tiles = dict[str, Any]


def _all_tiles(layers: dict[str, _Tiles]) -> list[Any]:
    return [tile for tiles in layers.values() for tile in tiles.values()]


def _tiles_of(layers: dict[str, Any]) -> dict[str, _Tiles]:
    """Return each layer's tiles; made once per call, since walking through modules takes time."""
    return {name: dict(layer.named_analog_tiles()) for name, layer in layers.items()}


def _check_settings(layers: dict[str, _Tiles], seconds: float) -> None:
    """Ask each noise model with a fitted range of times, and whether tiles know their effects; nothing is written."""
    for name, tiles in layers.items():
        for tile in tiles.values():
            if getattr(tile.rpu_config.forward, "effects", ()) and not isinstance(tile.tile, CrossbarTile):
                raise NabnError(
                    f"layer {name!r}: {type(tile.tile).__name__} knows no readout effects, CrossbarTile does"
                )
            check = getattr(tile.rpu_config.noise_model, "check_time", None)
            if check is not None:
                try:
                    check(seconds)
                except NabnError as error:
                    raise NabnError(f"layer {name!r}: {error}") from error


def _drift_tile(tile: Any, seed: int, seconds: float) -> None:
    """Drift a programmed tile, inside its `direct_readout`."""
    tile._nabn_written = None  # so that an interruption in between is not taken for training
    with _tile_rng(tile, seed):
        tile.drift_weights(seconds)
    weight = getattr(tile.tile, "weight", None)
    if isinstance(weight, nn.Parameter):  # row by row, as in a chip file: the last bits of results depend on it
        weight.data = weight.data.contiguous()
    note_written(tile)


def _tile_rng(tile: Any, seed: int) -> AbstractContextManager[None]:
    """Return a context in which the tile's noise comes from this seed alone."""
    noise_model, compensation = tile.rpu_config.noise_model, getattr(tile.rpu_config, "drift_compensation", None)
    parts = [*getattr(noise_model, "effects", (noise_model,)), compensation]
    # Who knows where other people's models draw from.
    known = all(part is None or type(part).__module__.partition(".")[0] in _DRAW_THROUGH_TORCH for part in parts)
    return private_rng(seed, torch_only=known)


def _to_program(tile: Any) -> Tensor:
    """Return the weights to program: those the tile holds, if they are new (never programmed or trained since)."""
    if tile.reference_combined_weights is None or was_trained(tile):
        return weights_on(tile).cpu()
    reference: Tensor = tile.reference_combined_weights
    return reference


def _check_weights(tiles_of: dict[str, _Tiles]) -> None:
    for name, tiles in tiles_of.items():
        # A sum is NaN or infinite where an entry is, at a fraction of the cost of looking at each.
        if not all(math.isfinite(float(_to_program(tile).sum(dtype=torch.float64))) for tile in tiles.values()):
            raise NabnError(f"the weights of layer {name!r} hold NaN or infinite values: they cannot be programmed")


def _set_reference(tiles: _Tiles) -> None:
    for tile in tiles.values():
        weights = _to_program(tile)
        if weights is not tile.reference_combined_weights or not weights.is_contiguous():
            tile.reference_combined_weights = weights.clone(memory_format=torch.contiguous_format)
        tile._nabn_written = None


def _set_layer_max(tiles: _Tiles) -> None:
    """Tell noise models that ask for it the layer's largest weight, in each tile's own units."""
    if not any(_uses_layer_max(tile) for tile in tiles.values()):
        return
    scales, maxima = [], []
    for tile in tiles.values():
        reference = tile.reference_combined_weights
        scale = tile.get_scales()
        scale = torch.ones(1, dtype=reference.dtype) if scale is None else scale.detach().cpu().abs()
        scales.append(scale)
        if reference.numel():
            low, high = reference.detach().cpu().aminmax(dim=1)
            maxima.append((torch.maximum(-low, high) * scale).max())
        else:
            maxima.append(torch.zeros((), dtype=reference.dtype))
    layer_max = torch.stack(maxima).max()
    for tile, scale in zip(tiles.values(), scales, strict=True):
        if _uses_layer_max(tile):
            tile.rpu_config.noise_model.layer_max = layer_max / (scale.view(-1, 1) if scale.numel() > 1 else scale[0])


def _in_cycle(seed: int, cycle: int) -> int:
    return derive_seed(seed, "cycle", cycle) if cycle else seed


def _set_chip(tile: Any, seed: int, place: tuple[str, str], cycle: int) -> bool:
    """Tell our noise models which chip their tile is part of, and which cycle this is; False for those of others."""
    noise_model = tile.rpu_config.noise_model
    if not isinstance(noise_model, WeightNoiseModel):
        return False
    noise_model.chip_seed, noise_model.tile, noise_model.cycle = derive_seed(seed, "chip"), place, cycle
    return True


def _uses_layer_max(tile: Any) -> bool:
    noise_model = tile.rpu_config.noise_model
    return bool(getattr(noise_model, "uses_layer_max", hasattr(noise_model, "layer_max")))
