"""Elementwise work in cache-sized blocks, and the random numbers that go with them.

Several operations on a large tensor, one after the other, read and write memory once each; done block by block they
stay in the cache, and torch spreads each over its threads. Each part of a block has a random generator of its own, so
that the numbers depend on the part, not on how the work is cut into blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

# Elements with a generator of their own: seeding one costs as much as drawing a few hundred numbers.
PART = 2**17
# Elements per block where several threads share the work: starting them costs as much as a hundred thousand additions.
SHARED_BLOCK = 2**20

_local = threading.local()


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows that cover a tensor of two dimensions, a cache-sized block each."""
    n_rows, n_columns = shape
    if n_columns == 0:
        return
    height = _part_shape(n_columns)[0]
    if torch.get_num_threads() > 1:
        height *= max(1, SHARED_BLOCK // (height * n_columns))
    for top in range(0, n_rows, height):
        yield slice(top, min(top + height, n_rows))


def fill_random(target: Tensor, first_row: int, seed: int, uniform: bool = False) -> Tensor:
    """Fill some rows with their random numbers of a draw, the same ones whatever rows are filled with them.

    On one thread, as torch draws. On two cores, handing parts to a second Python thread made a large layer faster, but
    a network with many small ones slower: torch's own threads still spin on the other core after each operation.

    Args:
        target: ``[rows, columns]``, contiguous, on the CPU; as `row_blocks` cuts a tensor.
        first_row: Where the rows stand in the whole tensor.
        seed: Of the draw.
        uniform: Numbers from -0.5 to 0.5 instead of normal ones.

    Returns:
        `target`.
    """
    n_rows, n_columns = target.shape
    height, width = _part_shape(n_columns)
    per_line = -(-n_columns // width)
    for top in range(0, n_rows, height):
        for left in range(0, n_columns, width):
            part = target[top : top + height, left : left + width]
            generator = _generator(seed, (first_row + top) // height * per_line + left // width)
            part.uniform_(-0.5, 0.5, generator=generator) if uniform else part.normal_(generator=generator)
    return target


def scratch_like(rows: Tensor) -> Tensor:
    """Return a contiguous tensor of the shape of `rows` to overwrite; this thread's next call gives the same memory.

    Fresh memory costs as much as the numbers that are drawn into it.
    """
    kept: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("scratch", {})
    n = rows.numel()
    found = kept.get(rows.dtype)
    if found is None or found.numel() < n:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside of it
            found = torch.empty(n, dtype=rows.dtype)
        if n <= 2 * SHARED_BLOCK:
            kept[rows.dtype] = found
    return found[:n].view(rows.shape)


def as_rows(x: Tensor, channel_dim: int) -> tuple[Tensor, bool]:
    """Return `x` in two dimensions, as a view where its layout allows, and whether its channels are the columns.

    Args:
        x: ``[..., channels, *spatial]``.
        channel_dim: Negative index of the channels: -1 for vectors.

    Returns:
        ``[batch * channels, positions]`` and False, or ``[batch * positions, channels]`` and True where the channels
        lie next to each other in memory.
    """
    if channel_dim != -1 and x.stride(channel_dim) == 1 and x.shape[channel_dim] > 1:  # channels_last
        x, channel_dim = x.movedim(channel_dim, -1), -1
    if channel_dim == -1:
        return x.reshape(-1, x.shape[-1]), True
    return x.reshape(-1, x.shape[channel_dim + 1 :].numel()), False


def _part_shape(n_columns: int) -> tuple[int, int]:
    width = min(n_columns, PART)
    return max(1, PART // max(width, 1)), width


def _generator(seed: int, index: int) -> torch.Generator:
    """Return this thread's generator, started where part `index` of a draw begins."""
    generator: torch.Generator | None = getattr(_local, "generator", None)
    if generator is None:
        generator = _local.generator = torch.Generator()
    # An odd multiplier keeps parts apart in the 32 bits that torch's generator takes.
    return generator.manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)
