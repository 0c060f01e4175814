"""One chip: a draw of programming noise on a model's tiles, at one time after programming."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from aihwkit.simulator.tiles.inference import InferenceTileWithPeriphery
from torch import Tensor, nn

from aihwkit_nabn.chip.calibration_state import clear_calibration
from aihwkit_nabn.chip.times import parse_time
from aihwkit_nabn.errors import ConversionError, NabnError, NotProgrammedError
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.seeding import RandomStream, check_seed, derive_seed, isolated_rng
from aihwkit_nabn.simulator.compensation import match_readout_dtype
from aihwkit_nabn.simulator.variation import begin_variation, restart_variation, rewind_variation


@dataclass(frozen=True, kw_only=True)
class ChipState:
    """Which chip a model holds.

    Args:
        seed: Of the programming noise.
        t_inference: Seconds after programming.
    """

    seed: int
    t_inference: float


def program_chip(model: nn.Module, seed: int, t_inference: float | str = 0.0) -> nn.Module:
    """Program the chip of this `seed` onto the model's tiles and let it drift to `t_inference`, in place.

    The same seed gives the same chip whatever ran before, on every machine; the caller's random generators stay where
    they were. Each tile draws from a stream of its own, so a layer's noise does not depend on the layers around it. A
    calibration of an earlier chip is removed, and the read-noise stream starts anew from this seed. Noise that varies
    while the network runs starts with no sample processed.

    Args:
        model: An analog model, ours or one of aihwkit's `convert_to_analog` with inference tiles.
        seed: Integer >= 0.
        t_inference: Seconds after programming, or a text such as ``"1d"``.

    Returns:
        The model.

    Raises:
        ConversionError: the model has no inference tiles.
        NabnError: seed or time is out of range, also of the noise model's; nothing has been changed then.
    """
    seed = check_seed("seed", seed)
    seconds = parse_time(t_inference)
    layers = _layers(model)
    _check_time(layers, seconds)
    clear_calibration(model)
    rewind_variation(model)
    model.__dict__.pop("chip_state", None)  # there is none until all tiles are written
    for name, layer in layers.items():
        _set_reference(layer)
        _set_layer_max(layer)
        _set_chip_seed(layer, seed)
        for tile_name, tile in _tiles(layer):
            match_readout_dtype(tile)
            with isolated_rng(derive_seed(seed, "program", name, tile_name)):
                tile.program_weights()
    _drift(layers, seed, seconds)
    begin_variation(model, _all_tiles(layers), note_rewound=_note_written)
    model.__dict__["chip_state"] = ChipState(seed=seed, t_inference=seconds)
    set_read_noise_seed(model, seed)
    return model


def drift_chip(model: nn.Module, t_inference: float | str) -> nn.Module:
    """Let the chip that is on the model drift to another time, in place; the devices stay the same ones.

    Calibration, if any, stays too: what it is worth at the new time is for the caller to see.

    Raises:
        NotProgrammedError: `program_chip` has not been called, or the weights have been trained since.
        NabnError: the time is out of range; nothing has been changed then.
    """
    seconds = parse_time(t_inference)
    state = chip_state(model)
    layers = _layers(model)
    _check_time(layers, seconds)
    n_samples = rewind_variation(model)
    for name, layer in layers.items():
        if any(_was_trained(tile) for _, tile in _tiles(layer)):
            raise NotProgrammedError(f"layer {name!r} was trained after it was programmed; call program_chip again")
    _drift(layers, state.seed, seconds)
    begin_variation(model, _all_tiles(layers), n_samples, _note_written)
    model.__dict__["chip_state"] = ChipState(seed=state.seed, t_inference=seconds)
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
    for name, layer in _layers(model).items():
        if any(tile.programmed_weights is None for _, tile in _tiles(layer)):
            raise NotProgrammedError(f"layer {name!r} is not programmed; call program_chip(model, seed=...) first")


def set_read_noise_seed(model: nn.Module, seed: int) -> None:
    """Restart the model's read-noise stream: the noise drawn anew in every analog product.

    Noise that varies while the network runs starts again too, always as the chip's own seed has it.

    Our layers draw from a stream of their own each. aihwkit's own torch-tile layers are given one (their draws are
    redirected while they run); its compiled tiles use a C++ generator that cannot be seeded from here.

    Raises:
        ConversionError: the model has no inference tiles.
        NabnError: the seed is no integer >= 0.
    """
    seed = check_seed("seed", seed)
    layers = _layers(model)
    restart_variation(model)
    for name, layer in layers.items():
        stream = derive_seed(seed, "read", name)
        if isinstance(layer, NoiseAwareLayer):
            layer.read_noise.restart(stream)
        elif isinstance(getattr(layer, "_nabn_read_noise", None), _RedirectedStream):
            layer._nabn_read_noise.stream.restart(stream)
        else:
            layer._nabn_read_noise = _RedirectedStream(RandomStream(stream))
            layer.register_forward_pre_hook(_enter_stream)
            layer.register_forward_hook(_leave_stream, always_call=True)


class _RedirectedStream:
    """A stream that stands in for the global generator during the forward pass of a layer that is not ours."""

    def __init__(self, stream: RandomStream) -> None:
        self.stream = stream
        self.active: list[Any] = []


def _enter_stream(layer: Any, args: tuple[Any, ...]) -> None:
    device = next((a.device for a in args if isinstance(a, Tensor)), torch.device("cpu"))
    block = layer._nabn_read_noise.stream.as_global(device)
    block.__enter__()
    layer._nabn_read_noise.active.append(block)


def _leave_stream(layer: Any, args: tuple[Any, ...], output: Any) -> None:
    if layer._nabn_read_noise.active:
        layer._nabn_read_noise.active.pop().__exit__(None, None, None)


def _layers(model: nn.Module) -> dict[str, Any]:
    layers = named_analog_layers(model) if isinstance(model, nn.Module) else {}
    if not layers:
        raise ConversionError(
            f"{type(model).__name__} has no layer on inference tiles; convert it with convert_to_noise_aware first"
        )
    return layers


def _tiles(layer: nn.Module) -> list[tuple[str, Any]]:
    tiles: Any = layer.named_analog_tiles()  # type: ignore[operator]
    return [(name, tile) for name, tile in tiles if isinstance(tile, InferenceTileWithPeriphery)]


def _all_tiles(layers: dict[str, nn.Module]) -> list[Any]:
    return [tile for layer in layers.values() for _, tile in _tiles(layer)]


def _check_time(layers: dict[str, nn.Module], seconds: float) -> None:
    """Ask each noise model with a fitted range of times before anything is written."""
    for name, layer in layers.items():
        for _, tile in _tiles(layer):
            check = getattr(tile.rpu_config.noise_model, "check_time", None)
            if check is not None:
                try:
                    check(seconds)
                except NabnError as error:
                    raise NabnError(f"layer {name!r}: {error}") from error


def _drift(layers: dict[str, nn.Module], seed: int, seconds: float) -> None:
    for name, layer in layers.items():
        for tile_name, tile in _tiles(layer):
            tile._nabn_written = None  # so that an interruption in between is not taken for training
            with isolated_rng(derive_seed(seed, "drift", name, tile_name)):
                tile.drift_weights(seconds)
            _note_written(tile)


def _note_written(tile: Any) -> None:
    tile._nabn_written = _Written.of(tile)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """How a tile's weights were when we wrote them.

    Optimizers change a parameter in place, which its version counter tells; aihwkit's own programming and drift do not
    touch the counter. A copy of the tile starts counting anew: there the checksum tells.
    """

    parameter_id: int
    version: int
    checksum: int

    @classmethod
    def of(cls, tile: Any) -> _Written:
        parameter = _trainable(tile)
        return cls(
            parameter_id=id(parameter), version=getattr(parameter, "_version", 0), checksum=_weight_checksum(tile)
        )


def _weight_checksum(tile: Any) -> int:
    weights = tile.tile.get_weights().detach().cpu().contiguous()
    return zlib.crc32(weights.view(torch.uint8).numpy())


def _trainable(tile: Any) -> Tensor | None:
    """The parameter an optimizer sees: of the torch tile, or the one a compiled tile shares its memory with."""
    return getattr(tile.tile, "weight", getattr(tile, "shared_weights", None))


def _was_trained(tile: Any) -> bool:
    """Whether an optimizer has changed the weights since we wrote them.

    aihwkit keeps the reference of the first programming and would program that again, losing the training.
    """
    written: _Written | None = getattr(tile, "_nabn_written", None)
    if written is None:
        return False
    parameter = _trainable(tile)
    if id(parameter) == written.parameter_id:
        return getattr(parameter, "_version", 0) != written.version
    return _weight_checksum(tile) != written.checksum


def _set_reference(layer: nn.Module) -> None:
    """Make the weights the tiles hold the ones to program, where they are new: never programmed or trained since."""
    for _, tile in _tiles(layer):
        if tile.reference_combined_weights is None or _was_trained(tile):
            tile.reference_combined_weights = tile.tile.get_weights().detach().cpu().clone()
        tile._nabn_written = None


def _set_layer_max(layer: nn.Module) -> None:
    """Tell noise models that ask for it the layer's largest weight, in each tile's own units."""
    tiles = [tile for _, tile in _tiles(layer)]
    if not any(hasattr(tile.rpu_config.noise_model, "layer_max") for tile in tiles):
        return
    scales, maxima = [], []
    for tile in tiles:
        reference = tile.reference_combined_weights
        scale = tile.get_scales()
        scale = torch.ones(1, dtype=reference.dtype) if scale is None else scale.detach().cpu().abs()
        scales.append(scale)
        in_layer_units = reference.detach().cpu().abs() * scale.view(-1, 1)
        maxima.append(in_layer_units.max() if reference.numel() else torch.zeros((), dtype=reference.dtype))
    layer_max = torch.stack(maxima).max()
    for tile, scale in zip(tiles, scales, strict=True):
        if hasattr(tile.rpu_config.noise_model, "layer_max"):
            tile.rpu_config.noise_model.layer_max = layer_max / (scale.view(-1, 1) if scale.numel() > 1 else scale[0])


def _set_chip_seed(layer: nn.Module, seed: int) -> None:
    """Tell noise models that ask for it which chip their tile is part of, for what all its tiles have in common."""
    for _, tile in _tiles(layer):
        if hasattr(tile.rpu_config.noise_model, "chip_seed"):
            tile.rpu_config.noise_model.chip_seed = derive_seed(seed, "chip")
