"""Elementwise work in cache-sized blocks, on as many threads as torch may use.

Several operations on a large tensor, one after the other, read and write memory once each; done block by block they
stay in the cache. torch draws random numbers on one thread; blocks with a generator of their own are drawn on all of
them, and the numbers depend on the block, not on how many threads there are.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

BLOCK = 32_768  # elements; also the size up to which torch itself works on one thread
CHUNK = 4 * BLOCK  # elements per generator: seeding one costs as much as drawing some ten thousand numbers

_local = threading.local()


def blocks(rows: range, columns: range) -> Iterator[tuple[slice, slice]]:
    """Yield slices ``(rows, columns)`` of at most `BLOCK` elements that together cover the area."""
    width = min(len(columns), BLOCK)
    height = max(1, BLOCK // max(width, 1))
    for top in range(rows.start, rows.stop, height):
        for left in range(columns.start, columns.stop, width):
            yield slice(top, min(top + height, rows.stop)), slice(left, min(left + width, columns.stop))


def for_chunks(work: Callable[[int, range, range], None], shape: tuple[int, int]) -> None:
    """Call ``work(index, rows, columns)`` for areas of about `CHUNK` elements that cover a tensor of two dimensions.

    Args:
        work: Run on several threads at once where torch may use several; it must write to its own area only.
        shape: Of the tensor.
    """
    n_rows, n_columns = shape
    if n_rows == 0 or n_columns == 0:
        return
    width = min(n_columns, CHUNK)
    height = max(1, CHUNK // width)
    areas = [
        (range(top, min(top + height, n_rows)), range(left, min(left + width, n_columns)))
        for top in range(0, n_rows, height)
        for left in range(0, n_columns, width)
    ]
    if torch.get_num_threads() == 1 or len(areas) == 1:
        for index, area in enumerate(areas):
            work(index, *area)
        return
    inference = torch.is_inference_mode_enabled()

    def run(index: int) -> None:
        # These modes belong to a thread; tensors made in inference mode can only be written in it.
        with torch.inference_mode(inference), torch.no_grad():
            work(index, *areas[index])

    for _ in _pool(torch.get_num_threads(), os.getpid()).map(run, range(len(areas))):
        pass


def chunk_generator(seed: int, index: int) -> torch.Generator:
    """Return this thread's generator, started where chunk `index` of the draws under `seed` begins."""
    generator: torch.Generator | None = getattr(_local, "generator", None)
    if generator is None:
        generator = _local.generator = torch.Generator()
    # An odd multiplier keeps chunks apart in the 32 bits that torch's generator takes.
    return generator.manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)


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


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="nabn")
