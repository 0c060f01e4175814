"""The analog matrix-vector product of a layer: what its tiles do to an input, in the form the layer needs.

A layer holds one `TileModuleArray` of aihwkit; a `LinearMap` says how its weight matrix meets the input (a matrix
product, a convolution). Where the tiles' forward pass is perfect (all non-idealities sit in the programmed weights),
the product is computed with torch's own operator on the effective weights, at the digital layer's cost, for every kind
of convolution. Otherwise the input is unfolded and goes through each tile's own analog forward pass.
"""

from __future__ import annotations

import torch
from aihwkit.simulator.parameters.enums import AnalogMVType, WeightModifierType
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.module import TileModule
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import RandomStream
from aihwkit_nabn.simulator.linear_map import LinearMap, TransposedMap

__all__ = [
    "LinearMap",
    "TransposedMap",
    "analog_product",
    "effective_weight",
    "is_perfect",
    "tile_output_scale",
    "tiles_of",
    "unfolded_product",
]


def tiles_of(array: nn.Module) -> list[TileModule]:
    """Return the tiles inside `array` (or `array` itself where it is one), in a fixed order."""
    return [module for module in array.modules() if isinstance(module, TileModule)]


def is_perfect(array: TileModuleArray) -> bool:
    """Whether every tile multiplies exactly, so that all noise there is sits in its weights."""
    for tile in tiles_of(array):
        forward = tile.rpu_config.forward
        if type(tile) is not TorchInferenceTile or type(tile.tile) is not TorchSimulatorTile:
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
    columns = []
    for in_tiles in array.array:
        rows = []
        for tile in in_tiles:
            is_torch = isinstance(tile.tile, nn.Module)
            weight = tile.tile.weight if is_torch else tile.tile.get_weights()
            modifier = tile.rpu_config.modifier
            if is_torch and tile.training and modifier.type not in (WeightModifierType.NONE, WeightModifierType.COPY):
                weight = TorchSimulatorTile.modify_weight(weight, modifier, 1)
            scale = tile_output_scale(tile)
            rows.append(weight if scale is None else weight * scale.view(-1, 1))
        columns.append(rows[0] if len(rows) == 1 else torch.cat(rows, 0))
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def tile_output_scale(tile: TileModule) -> Tensor | None:
    """Return what a tile's analog result is multiplied with (``[1]`` or ``[out]``), or None."""
    scale = tile.mapping_scales
    if tile.out_scaling_alpha is not None:
        scale = tile.out_scaling_alpha if scale is None else scale * tile.out_scaling_alpha
    if not tile.training and getattr(tile.rpu_config, "drift_compensation", None) is not None:
        scale = tile.alpha if scale is None else scale * tile.alpha
    return scale


def analog_product(x: Tensor, array: TileModuleArray, linear_map: LinearMap, stream: RandomStream) -> Tensor:
    """Return the layer's analog output for `x`.

    Args:
        x: ``[..., in]`` for a matrix product, ``[batch, channels, *spatial]`` or one unbatched sample for a
            convolution.
        array: The layer's tiles, with the digital bias.
        linear_map: How the matrix is applied.
        stream: Where per-product noise is drawn from.

    Returns:
        The output in the layout torch's own layer gives.
    """
    if is_perfect(array):
        return linear_map.apply(x, effective_weight(array), array.bias)
    with stream.as_global(x.device):
        if linear_map.spatial_dims == 0:
            return array(x) if x.numel() else linear_map.apply(x, x.new_zeros(array.out_size, array.in_size), None)
        return _unfolded_convolution(x, array, linear_map)


def _unfolded_convolution(x: Tensor, array: TileModuleArray, linear_map: LinearMap) -> Tensor:
    unbatched = x.dim() == linear_map.spatial_dims + 1
    if unbatched:
        x = x.unsqueeze(0)
    if x.shape[0] == 0:
        return linear_map.apply(x, x.new_zeros(array.out_size, array.in_size), None)
    vectors, size = linear_map.unfold(x)
    out = unfolded_product(vectors, array).transpose(1, 2).reshape(x.shape[0], array.out_size, *size)
    return out.squeeze(0) if unbatched else out


def unfolded_product(vectors: Tensor, array: TileModuleArray) -> Tensor:
    """Send vectors through the tiles: ``[batch, groups, positions, in]`` to ``[batch, positions, out]``, bias added."""
    return array(vectors.squeeze(1)) if vectors.shape[1] == 1 else _grouped_array(vectors, array)


def _grouped_array(vectors: Tensor, array: TileModuleArray) -> Tensor:
    """Drive the rows of each group's outputs with that group's inputs; the other rows are not read."""
    groups = vectors.shape[1]
    per_group = array.out_size // groups
    outputs = []
    for group in range(groups):
        rows = range(group * per_group, (group + 1) * per_group)
        outputs.append(_array_rows(vectors[:, group], array, rows))
    out = torch.cat(outputs, -1)
    return out if array.bias is None else out + array.bias


def _array_rows(x: Tensor, array: TileModuleArray, rows: range) -> Tensor:
    total: Tensor | None = None
    for part, in_tiles in zip(x.split(array.in_sizes, -1), array.array, strict=True):
        start, pieces = 0, []
        for tile in in_tiles:
            first, last = max(rows.start, start) - start, min(rows.stop, start + tile.out_size) - start
            if first < last:
                pieces.append(_tile_rows(part, tile, slice(first, last)))
            start += tile.out_size
        piece = pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)
        total = piece if total is None else total + piece
    if total is None:
        raise NabnError("an analog layer holds no tiles")
    return total


def _tile_rows(x: Tensor, tile: TileModule, rows: slice) -> Tensor:
    """The forward pass of aihwkit's torch tile, of some of its outputs only."""
    is_test = not tile.training
    weight = tile.tile.weight
    if not is_test:
        weight = TorchSimulatorTile.modify_weight(weight, tile.rpu_config.modifier, x.shape[0])
    x = tile.pre_forward(x, x.dim() - 1, is_test)
    noise = tile.tile.out_noise_values
    out = tile.tile._analog_mvm.matmul(
        weight[..., rows, :],
        x,
        tile.rpu_config.forward,
        False,
        is_test=is_test,
        out_noise_values=None if noise is None else noise[rows],
    )
    if tile.input_range is not None:
        out = out * tile.input_range
    scale = tile_output_scale(tile)
    if scale is not None:
        out = out * (scale if scale.numel() == 1 else scale[rows])
    return out
