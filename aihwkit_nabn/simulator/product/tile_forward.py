"""A layer's product through each tile's own forward pass, on unfolded inputs: for tiles of other kinds."""

from __future__ import annotations

import functools

import torch
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.module import TileModule
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor

from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.replication import copies_of, repeated
from aihwkit_nabn.simulator.product.tiles import output_values, tile_output_scale


def through_tiles(x: Tensor, array: TileModuleArray, linear_map: LinearMap) -> Tensor:
    """Return the product of `x`, ``[..., in]``, ``[batch, channels, *spatial]`` or one sample, with torch's numbers."""
    if linear_map.spatial_dims == 0:
        out: Tensor = array(x)
        return out
    return linear_map.by_vectors(x, lambda vectors: unfolded_product(vectors, array))


def unfolded_product(vectors: Tensor, array: TileModuleArray) -> Tensor:
    """Send vectors through the tiles: ``[batch, groups, positions, in]`` to ``[batch, positions, out]``, bias added."""
    return array(vectors.squeeze(1)) if vectors.shape[1] == 1 else _grouped_array(vectors, array)


def _grouped_array(vectors: Tensor, array: TileModuleArray) -> Tensor:
    """Drive the rows of each group's outputs with that group's inputs; the other rows are not read."""
    n = array.out_size // vectors.shape[1]
    groups = enumerate(vectors.unbind(1))
    out = torch.cat([_array_rows(own, array, range(i * n, (i + 1) * n)) for i, own in groups], -1)
    return out if array.bias is None else out + array.bias


def _array_rows(x: Tensor, array: TileModuleArray, rows: range) -> Tensor:
    sums = []
    x = repeated(x, copies_of(array))
    for part, in_tiles in zip(x.split(array.in_sizes, -1), array.array, strict=True):
        start, pieces = 0, []
        for tile in in_tiles:
            first, last = max(rows.start, start) - start, min(rows.stop, start + tile.out_size) - start
            if first < last:
                pieces.append(_tile_rows(part, tile, slice(first, last)))
            start += tile.out_size
        sums.append(torch.cat(pieces, -1))
    return functools.reduce(torch.add, sums)


def _tile_rows(x: Tensor, tile: TileModule, rows: slice) -> Tensor:
    """The forward pass of aihwkit's torch tile, of some of its outputs only."""
    is_test = not tile.training
    weight = tile.tile.weight
    if not is_test:
        weight = TorchSimulatorTile.modify_weight(weight, tile.rpu_config.modifier, x.shape[0])
    x = tile.pre_forward(x, x.dim() - 1, is_test)
    values = {name: value[rows] for name, value in output_values(tile.tile, tile.rpu_config.forward).items()}
    out = tile.tile._analog_mvm.matmul(
        weight[..., rows, :], x, tile.rpu_config.forward, False, is_test=is_test, **values
    )
    if tile.input_range is not None:
        out = out * tile.input_range
    scale = tile_output_scale(tile)
    return out if scale is None else out * (scale if scale.numel() == 1 else scale[rows])
