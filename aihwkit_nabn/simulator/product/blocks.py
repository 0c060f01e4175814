"""Elementwise work in cache-sized blocks.

Several operations on a large tensor, one after the other, read and write memory once each; done block by block they
stay in the cache, and torch spreads each over its threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

# Elements per block on one thread, and on several: starting those costs as much as a hundred thousand additions.
BLOCK = 2**17
SHARED_BLOCK = 2**19

_local = threading.local()


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Yield slices of rows that cover a tensor of two dimensions, a cache-sized block each."""
    n_rows, n_columns = shape
    if n_columns == 0:
        return
    height = max(1, (SHARED_BLOCK if torch.get_num_threads() > 1 else BLOCK) // n_columns)
    for top in range(0, n_rows, height):
        yield slice(top, min(top + height, n_rows))


def scratch_like(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous tensor of the shape of `rows` to overwrite; this thread's next call gives the same memory.

    Fresh memory costs as much as the numbers that are drawn into it. Each dtype has its own; default: that of `rows`.
    """
    kept: dict[torch.dtype, Tensor] = _local.__dict__.setdefault("scratch", {})
    dtype, n = dtype or rows.dtype, rows.numel()
    found = kept.get(dtype)
    if found is None or found.numel() < n:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be written outside of it
            found = torch.empty(n, dtype=dtype)
        if n <= 2 * SHARED_BLOCK:
            kept[dtype] = found
    return found[:n].view(rows.shape)


def as_rows(x: Tensor, channel_dim: int) -> tuple[Tensor, bool]:
    """Return ``[..., channels, *spatial]`` in two dimensions, as a view if its layout allows; the channel_dim is < 0.

    That is ``[batch * channels, positions]`` and False, or ``[batch * positions, channels]`` and True where the
    channels lie next to each other in memory.
    """
    if channel_dim != -1 and x.stride(channel_dim) == 1 and x.shape[channel_dim] > 1:  # channels_last
        x, channel_dim = x.movedim(channel_dim, -1), -1
    if channel_dim == -1:
        return x.reshape(-1, x.shape[-1]), True
    return x.reshape(-1, x.shape[channel_dim + 1 :].numel()), False
