"""The analog matrix-vector product of a layer: what its tiles do to an input, in the form the layer needs.

A layer holds one `TileModuleArray` of aihwkit; a `LinearMap` says how its weight matrix meets the input (a matrix
product, a convolution). Four ways lead to the result, the first that fits is taken:

1. The tiles' products are perfect (all non-idealities sit in the programmed weights): torch's own operator on the
   effective weights, at the digital layer's cost.
2. Converters and noise treat every input vector alike: one convolution per tile row (`crossbar`).
3. They look at each vector: the input is unfolded, a bounded part at a time (`vectors`).
4. The tiles are not the torch tile, or in training: unfolded, through each tile's own forward pass.

With gradients, and where torch records operations instead of running them, 2 and 3 give way to operations that torch
can follow (`straight_through`).
"""

from __future__ import annotations

import dataclasses
import functools
import warnings

import torch
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.array import TileModuleArray
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from aihwkit_nabn import native
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import RandomStream
from aihwkit_nabn.simulator.product.crossbar import TileRow, depends_on_vector, product_of_rows
from aihwkit_nabn.simulator.product.linear_map import LinearMap, size_product
from aihwkit_nabn.simulator.product.straight_through import straight_through_product
from aihwkit_nabn.simulator.product.tile_forward import through_tiles
from aihwkit_nabn.simulator.product.tiles import effective_weight, is_perfect, is_plain_torch, tile_rows, tiles_of
from aihwkit_nabn.simulator.product.vectors import vector_product

VALUES_AT_ONCE = 2**22  # of unfolded inputs, 16 MB
FEWEST_VALUES = 2**12
# What torch's allocator for the CPU says; it raises a plain RuntimeError.
_OUT = ("can't allocate memory", "not enough memory")


def analog_product(
    x: Tensor, array: TileModuleArray, linear_map: LinearMap, stream: RandomStream, exact: bool = False
) -> Tensor:
    """Return the layer's analog output for `x`.

    Args:
        x: ``[..., in]`` for a matrix product, ``[batch, channels, *spatial]`` or one unbatched sample for a
            convolution.
        array: The layer's tiles, with the digital bias.
        linear_map: How the matrix is applied.
        stream: Where per-product noise is drawn from; what torch records for later draws from torch's own generators.
        exact: Take the first way whatever the settings.

    Returns:
        The output in the layout torch's own layer gives.

    Raises:
        NabnError: torch records operations, and aihwkit's compiled tiles have none that it could.
    """
    if exact or is_perfect(array):
        return linear_map.apply(x, effective_weight(array), array.bias)
    if x.numel() == 0:
        return linear_map.apply(x, x.new_zeros(array.out_size, array.in_size), None)
    if native.is_compiled():
        return _left_out(x, array, linear_map, stream)  # draws from the stream, and is compiled already
    recorded = native.is_recorded(x)
    if not is_plain_torch(array):
        if recorded:
            _check_recordable(array)
        with stream.as_global(x):
            return through_tiles(x, array, linear_map)
    rows, io = tile_rows(array, as_numbers=not recorded), tiles_of(array)[0].rpu_config.forward
    reason = depends_on_vector(io)
    if recorded or (
        torch.is_grad_enabled()
        and (x.requires_grad or any(weight.requires_grad for row in rows for weight in row.weights))
    ):
        with stream.as_global(x):
            if not reason:
                return straight_through_product(x, rows, io, linear_map, bias=array.bias)
            if recorded:
                return _recorded_by_vectors(x, rows, io, linear_map, array.bias)
            return through_tiles(x, array, linear_map)
    with torch.no_grad():
        if not reason:
            generator = None if x.device.type == "cpu" else stream.generator(x.device)
            return product_of_rows(x, rows, io, linear_map, bias=array.bias, seed=stream.integer, generator=generator)
        if linear_map.spatial_dims:
            _say_once(reason)
        with stream.as_global(x):
            return _within_memory(x, rows, io, linear_map, array.bias)


_left_out = _disable_dynamo(analog_product)  # imports the compiler when called, not here


def _check_recordable(array: TileModuleArray) -> None:
    for tile in tiles_of(array):
        if not isinstance(tile.tile, nn.Module):
            raise NabnError(
                f"aihwkit's compiled {type(tile).__name__} has no operations that torch can trace, compile, export or "
                "transform; use a torch-tile preset"
            )


def _within_memory(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, bias: Tensor | None
) -> Tensor:
    """Unfold in smaller parts where memory runs out: slow, but it gives a result."""
    values = VALUES_AT_ONCE
    while True:
        try:
            return _by_vectors(x, rows, io, linear_map, bias, values)
        except (MemoryError, RuntimeError) as error:
            is_out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
                text in str(error) for text in _OUT
            )
            if values < FEWEST_VALUES or not is_out:
                raise
        values //= 8
        warnings.warn(
            f"out of memory: unfolding {values:,} values at a time instead of {8 * values:,}; read noise is drawn "
            "anew, so this pass differs from what the same seed gives elsewhere",
            stacklevel=2,
        )


def _by_vectors(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, bias: Tensor | None, values: int
) -> Tensor:
    """Unfold, a number of values at a time, and send the vectors through the tile rows."""
    if linear_map.spatial_dims == 0:
        parts = x.reshape(-1, x.shape[-1]).split(max(1, values // x.shape[-1]))
        out = torch.cat([_vectors_through(part, rows, io) for part in parts])
        out = out if bias is None else out.add_(bias)
        return out.view(*x.shape[:-1], -1)
    batched = x if x.dim() == linear_map.spatial_dims + 2 else x.unsqueeze(0)
    groups, out_size = linear_map.groups, rows[0].out_size
    size = linear_map.output_size(batched)
    of_groups = _rows_of_groups(rows, groups)
    out = x.new_empty(batched.shape[0], groups, out_size // groups, size_product(size))
    for sample, positions, vectors in linear_map.unfold_parts(batched, values):
        for group, own in enumerate(of_groups):
            out[sample, group, :, positions] = _vectors_through(vectors[group], own, io).T
    out = out.flatten(1, 2)
    if bias is not None:
        out.add_(bias.view(-1, 1))
    out = out.view(batched.shape[0], out_size, *size)
    return out if batched is x else out.squeeze(0)


def _recorded_by_vectors(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, bias: Tensor | None
) -> Tensor:
    """Unfold all at once, in operations that torch can record."""
    if linear_map.spatial_dims == 0:
        out = _vectors_through(x.reshape(-1, x.shape[-1]), rows, io)
        return (out if bias is None else out + bias).reshape(*x.shape[:-1], -1)
    of_groups = _rows_of_groups(rows, linear_map.groups)

    def product(vectors: Tensor) -> Tensor:
        parts = [_vectors_through(vectors[:, group].flatten(0, 1), own, io) for group, own in enumerate(of_groups)]
        out = torch.cat(parts, -1).unflatten(0, (vectors.shape[0], -1))
        return out if bias is None else out + bias

    return linear_map.by_vectors(x, product)


def _vectors_through(vectors: Tensor, rows: list[TileRow], io: IOParameters) -> Tensor:
    parts = (vector_product(vectors[:, row.columns.start : row.columns.stop], row, io) for row in rows)
    return functools.reduce(torch.add, parts)


def _rows_of_groups(rows: list[TileRow], groups: int) -> list[list[TileRow]]:
    """Return each group's part of the tile rows: the outputs that belong to it."""
    if groups == 1:
        return [rows]
    n = rows[0].out_size // groups
    return [[_outputs_of(row, slice(group * n, (group + 1) * n)) for row in rows] for group in range(groups)]


def _outputs_of(row: TileRow, outputs: slice) -> TileRow:
    scale = row.scale[outputs] if isinstance(row.scale, Tensor) else row.scale
    values = {name: value[outputs] for name, value in row.outputs.items()}
    return dataclasses.replace(row, weights=(row.weight[outputs],), scale=scale, outputs=values)


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(
        f"forward.{reason} looks at each input vector, so convolutions are unfolded, many times slower than with "
        "static input ranges (noise_management NONE or CONSTANT, bound_management NONE, no inp_noise)",
        stacklevel=2,
    )
