"""What the tiles of a layer hold: weights, scales, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from aihwkit.simulator.parameters.enums import AnalogMVType, WeightModifierType
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.module import TileModule
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor, nn

from aihwkit_nabn import native
from aihwkit_nabn.simulator.product.crossbar import NOISE, TileRow
from aihwkit_nabn.simulator.product.replication import ReplicatedArray, copies_of, folded
from aihwkit_nabn.simulator.product.vectors import CrossbarTile

# Where an array keeps the matrix that stands in for its tiles' for a while.
_FIXED = "_nabn_fixed_weight"
_ARRAYS = (TileModuleArray, ReplicatedArray)


def tiles_of(array: nn.Module) -> list[TileModule]:
    """Return the tiles inside `array` (or `array` itself where it is one), in a fixed order."""
    if type(array) in _ARRAYS:  # walking through all modules would take longer than a small product
        return [tile for in_tiles in cast(Iterable[Iterable[TileModule]], array.array) for tile in in_tiles]
    return [module for module in array.modules() if isinstance(module, TileModule)]


def is_perfect(array: TileModuleArray) -> bool:
    """Whether every tile multiplies exactly, so that all noise there is sits in its weights."""
    for tile in tiles_of(array):
        forward = tile.rpu_config.forward
        if not _is_torch_tile(tile):
            return False
        if tile.input_range is not None or not (forward.is_perfect or forward.mv_type == AnalogMVType.IDEAL):
            return False
        if tile.training and tile.rpu_config.modifier.per_batch_sample:
            return False
    return True


def effective_weight(array: TileModuleArray) -> Tensor:
    """Return the matrix ``[out, in]`` that the array's tiles multiply with, digital scales and drift factor included.

    In training mode aihwkit's weight modifier is drawn into it and the drift factor left out, as its torch tile does.
    """
    if _FIXED in array.__dict__:
        fixed: Tensor = array.__dict__[_FIXED]
        return fixed
    tiles = tiles_of(array)
    if not torch.is_grad_enabled() and not any(tile.training or not isinstance(tile.tile, nn.Module) for tile in tiles):
        if not native.is_recorded(*(tile.tile.weight for tile in tiles)):
            return _written_weight(array)
    return _put_together(array, _effective_weight)


def _effective_weight(tile: TileModule) -> Tensor:
    is_torch = isinstance(tile.tile, nn.Module)
    weight = tile.tile.weight if is_torch else tile.tile.get_weights()
    modifier = tile.rpu_config.modifier
    if is_torch and tile.training and modifier.type not in (WeightModifierType.NONE, WeightModifierType.COPY):
        weight = TorchSimulatorTile.modify_weight(weight, modifier, 1)
    return _scaled(weight, tile_output_scale(tile))


def _scaled(weight: Tensor, scale: Tensor | None) -> Tensor:
    return weight if scale is None else weight * scale.view(-1, 1)


def _put_together(array: TileModuleArray, weight_of: Callable[[TileModule], Tensor]) -> Tensor:
    """Return the matrix ``[out, in]`` of the array from that of each tile."""
    columns = [_joined([weight_of(tile) for tile in in_tiles]) for in_tiles in array.array]
    return folded(_joined(columns, 1), copies_of(array))


def _written_weight(array: TileModuleArray) -> Tensor:
    """The same, of torch tiles in evaluation, without gradients: every weight is read and written once."""
    first = array.array[0][0]
    if array.analog_tile_count == 1 and tile_output_scale(first) is None:
        return first.tile.weight
    copies = copies_of(array)
    matrix = first.tile.weight.new_empty(array.out_size, copies * array.in_size)
    left = 0
    for in_tiles in array.array:
        top = 0
        for tile in in_tiles:
            place = matrix[top : top + tile.out_size, left : left + tile.in_size]
            scale = tile_output_scale(tile)
            if scale is None:
                place.copy_(tile.tile.weight)
            else:
                torch.mul(tile.tile.weight, scale.view(-1, 1), out=place)
            top += tile.out_size
        left += in_tiles[0].in_size
    return folded(matrix, copies)


@contextmanager
def fixed_weight(array: TileModuleArray, matrix: Tensor) -> Iterator[None]:
    """Let `effective_weight` return another matrix ``[out, in]`` inside the block; the tiles stay as they are."""
    array.__dict__[_FIXED] = matrix
    try:
        yield
    finally:
        del array.__dict__[_FIXED]


@torch.no_grad()
def target_weight(array: TileModuleArray) -> Tensor | None:
    """Return the matrix ``[out, in]`` that the tiles were to be programmed with, or hold; None if that is not known."""
    for tile in tiles_of(array):
        if _reference_weight(tile) is None and getattr(tile, "programmed_weights", None) is not None:
            return None
    return _put_together(array, _target_weight)


def _target_weight(tile: TileModule) -> Tensor:
    weight = _reference_weight(tile)
    weight = tile.tile.get_weights() if weight is None else weight
    return _scaled(weight.detach().to(tile.device), _mapping_scale(tile))


def _reference_weight(tile: TileModule) -> Tensor | None:
    return getattr(tile, "reference_combined_weights", None)


def _mapping_scale(tile: TileModule) -> Tensor | None:
    scale = tile.mapping_scales
    if tile.out_scaling_alpha is not None:
        scale = tile.out_scaling_alpha if scale is None else scale * tile.out_scaling_alpha
    return scale


def tile_output_scale(tile: TileModule) -> Tensor | None:
    """Return what a tile's analog result is multiplied with (``[1]`` or ``[out]``), or None."""
    scale = _mapping_scale(tile)
    if not tile.training and getattr(tile.rpu_config, "drift_compensation", None) is not None:
        scale = tile.alpha if scale is None else scale * tile.alpha
    return scale


def is_plain_torch(array: TileModuleArray) -> bool:
    """Whether the array's tiles are torch tiles in evaluation, whose forward pass this package computes itself."""
    return type(array) in _ARRAYS and all(_is_torch_tile(tile) and not tile.training for tile in tiles_of(array))


def _is_torch_tile(tile: TileModule) -> bool:
    return type(tile) is TorchInferenceTile and type(tile.tile) in (TorchSimulatorTile, CrossbarTile)


def tile_rows(array: TileModuleArray, *, as_numbers: bool = True) -> list[TileRow]:
    """Return the array's torch tiles, those that share inputs put side by side; input ranges as numbers or tensors."""
    rows, start, copies = [], 0, copies_of(array)
    for in_tiles in array.array:
        first, n = in_tiles[0], in_tiles[0].in_size // copies
        scales = [tile_output_scale(tile) for tile in in_tiles]
        wide = [
            (tile.tile.weight.new_ones(1) if scale is None else scale.view(-1)).expand(tile.out_size)
            for tile, scale in zip(in_tiles, scales, strict=True)
        ]
        given = None if first.input_range is None else first.input_range.detach().abs()
        outputs = [output_values(tile.tile, tile.rpu_config.forward) for tile in in_tiles]
        rows.append(
            TileRow(
                columns=range(start, start + n),
                weights=tuple(tile.tile.weight for tile in in_tiles),
                scale=_joined(wide),
                input_range=given if given is None or not as_numbers else given.item(),
                outputs={name: _joined([values[name] for values in outputs]) for name in outputs[0]},
                copies=copies,
            )
        )
        start += n
    return rows


def describe_mapping(array: TileModuleArray) -> str:
    """Return the tiles' size, what is scaled to full range, whether columns are copied and ranges set from images."""
    config = tiles_of(array)[0].rpu_config
    mapping = config.mapping
    rows, columns = (
        str(size) if size > 0 else "unlimited" for size in (mapping.max_input_size, mapping.max_output_size)
    )
    omega = mapping.weight_scaling_omega
    if not omega:
        scaling = "weights in the layer's own units"
    else:
        scaled = "each column" if mapping.weight_scaling_columnwise else "each tile"
        scaling = f"{scaled} scaled to {'full range' if omega == 1.0 else f'{omega:g} of full range'}"
    parts = [f"tiles of {rows} x {columns}", scaling]
    if copies_of(array) > 1:
        parts.append("columns copied over free rows")
    if getattr(config, "output_range", False):
        parts.append("ADC ranges from images")
    return ", ".join(parts)


def n_cells(array: TileModuleArray) -> int:
    """Return how many cells of the tiles are in use, copies included; a cell holds one weight."""
    return sum(tile.in_size * tile.out_size for tile in tiles_of(array))


def output_values(simulator: Any, io: IOParameters, ranges: bool = True) -> dict[str, Tensor]:
    """Return what differs from output to output of a simulator's tile, as `TileRow` and `CrossbarTile` have it."""
    if isinstance(simulator, CrossbarTile):
        return simulator.output_values(io, ranges)
    return {} if simulator.out_noise_values is None else {NOISE: simulator.out_noise_values}


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
