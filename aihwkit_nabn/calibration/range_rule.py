"""The static ranges of a layer's converters with the least error at its output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor, nn

from aihwkit_nabn.calibration.histogram import AbsHistogram, LogHistogram
from aihwkit_nabn.nn.input_ranges import own_bounds
from aihwkit_nabn.nn.layers import own_tiles
from aihwkit_nabn.simulator.product.physics.converters import input_converter, output_converter, resolution_step
from aihwkit_nabn.simulator.product.replication import copies_of, folded


def least_error_range(seen: AbsHistogram, layer: nn.Module, products: Sequence[LogHistogram] = ()) -> float:
    """Return the input range with the least mean squared error at the layer's output, see `calibrate_input_ranges`.

    `products` are what each tile makes of the inputs seen (`least_error_bounds`); without, the ADC cuts nothing off.
    """
    tiles = own_tiles(layer)
    io = tiles[0].rpu_config.forward
    if io.is_perfect:
        return seen.maximum
    # A range beyond the largest input cuts nothing off and drives the tiles less, for an ADC that would cut off more.
    outside = seen.maximum * torch.exp2(torch.arange(1, _octaves_beyond(seen, products, io) * 8 + 1).double() / 8)
    ranges = torch.cat([seen.edges, outside])
    within = torch.cat([seen.counts.cumsum(0), outside.new_full(outside.shape, float(seen.counts.sum()))])
    clipped = torch.cat([seen.clipped(), torch.zeros_like(outside)])
    rounded = within * (ranges * input_converter(io).step) ** 2 / 12.0 / seen.n_values
    # Squared weights of an output, over all tiles that add to it, in the tiles' units.
    copies = copies_of(layer.analog_module)
    squares = torch.stack([folded(tile.tile.get_weights(), copies).double().pow(2).sum() for tile in tiles]).sum()
    outputs = sum(tile.out_size for tile in tiles)
    weight = float(squares) / max(outputs, 1)
    if products:
        pairs = zip(products, tiles, strict=True)
        errors = [_output_error(own, ranges, io, tile)[0].mean(0) * tile.out_size for own, tile in pairs]
        at_output = torch.stack(errors).sum(0) / max(outputs, 1)
    else:
        at_output = ranges**2 * (io.out_noise**2 + output_converter(io).step ** 2 / 12.0)
    error = weight * (clipped + rounded) + at_output
    best = int(error.argmin())
    return min(float(ranges[best]), seen.maximum) if best < len(seen.edges) else float(ranges[best])


def _octaves_beyond(seen: AbsHistogram, products: Sequence[LogHistogram], io: IOParameters) -> int:
    """Return how often a range of the largest input must be doubled before the ADC takes all products."""
    largest = max((own.maximum() for own in products), default=0.0)
    return max(0, math.ceil(math.log2(largest / (io.out_bound * seen.maximum)))) if largest > 0.0 else 0


def least_error_bounds(input_range: float, layer: nn.Module, products: Sequence[LogHistogram]) -> Tensor:
    """Return the range of each output's ADC with the least mean squared error at an input range, all tiles' outputs.

    `products` are what each tile makes of the inputs in its own units, the reads of it apart (`reads_of`).
    """
    tiles = own_tiles(layer)
    io = tiles[0].rpu_config.forward
    ranges = torch.tensor([input_range], dtype=torch.float64)
    bounds = []
    for own, tile, reads in zip(products, tiles, reads_of(layer), strict=True):
        bounds.append((_output_error(own, ranges, io, tile)[1][:, 0] / input_range)[reads])
    return torch.cat(bounds).float()


def reads_of(layer: nn.Module) -> list[Tensor]:
    """Return which read of its tile each output belongs to, ``[out]`` for every tile.

    The groups of a grouped convolution are read one after the other, each with a range of the ADC of its own.
    """
    array: Any = layer.analog_module
    per_group = array.out_size // layer.linear_map.groups  # type: ignore[union-attr]
    groups = torch.arange(array.out_size) // per_group
    return [part - part[0] for part in groups.split(array.out_sizes)] * len(array.in_sizes)


def _output_error(products: LogHistogram, ranges: Tensor, io: IOParameters, tile: Any) -> tuple[Tensor, Tensor]:
    """Return each read's squared error at each input range, ``[reads, ranges]``, and where its ADC then cuts off.

    Both in products, the units of the tile times those of its inputs. An ADC that cuts off at B rounds to steps in
    proportion to B. Output noise is a part of the input range, and grows with B where that is beyond the settings' own
    range of the ADC.
    """
    noise, given = ranges**2 * io.out_noise**2, ranges * io.out_bound
    edges, clipped = products.edges, products.clipped()
    below = torch.searchsorted(edges, given, right=True)  # edges within the settings' own range
    rounding = resolution_step(io.out_res, 1.0) ** 2 / 12.0
    if own_bounds(tile) is None:
        return noise + rounding * given**2 + clipped[:, (below - 1).clamp(min=0)], given.expand(len(clipped), -1)
    cost = clipped + rounding * edges**2
    beyond = cost + (io.out_noise * edges / io.out_bound) ** 2
    nothing = torch.full_like(cost[:, :1], torch.inf)
    low, low_at = torch.cat([nothing, cost], 1).cummin(1)
    high, high_at = torch.cat([nothing, beyond.flip(1)], 1).cummin(1)
    low, low_at = low[:, below] + noise, low_at[:, below] - 1
    high, high_at = high.flip(1)[:, below], len(edges) - high_at.flip(1)[:, below]
    # Nothing but zeros has come out of a read: any range will do.
    silent = (products.counts[:, 1:].sum(1) == 0).unsqueeze(1)
    return torch.minimum(low, high), torch.where(silent, given, edges[torch.where(low <= high, low_at, high_at)])
