"""Sample the positions of an output: the same ones however the calibration set is split into batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Positions per channel, and values in all, that are taken of one call over the whole calibration set.
_POSITIONS = 8192
_VALUES = 2**20
# Fewest positions per channel in all, and of one calibration sample.
_FEWEST = 512
_FEWEST_OF_A_SAMPLE = 2
# Multiples of an irrational number, modulo 1, fall evenly and fit no stride.
_STEP = (math.sqrt(5.0) - 1.0) / 2.0


def positions_per_sample(n_channels: int, n_samples: int) -> int:
    """Return how many positions of each calibration sample to take, of `n_samples` in all."""
    wanted = min(_POSITIONS, max(_VALUES // max(n_channels, 1), _FEWEST))
    return max(wanted // max(n_samples, 1), _FEWEST_OF_A_SAMPLE)


class Positions:
    """Which positions of one output to look at.

    Each row (the first dimension, along which the samples lie) gives a few. A row's positions are cut into equal parts,
    and one is taken from each, at a place that moves from row to row by a step that is in no proportion to any stride.

    Args:
        shape: Of the output.
        channel_dim: Negative.
        first_row: How many rows of earlier batches there were.
        n_samples: Calibration samples that the rows belong to.
        wanted: Positions per sample.
    """

    def __init__(self, shape: torch.Size, channel_dim: int, first_row: int, n_samples: int, wanted: int) -> None:
        self.channel_dim = channel_dim
        sizes = list(shape)
        self.n_channels = sizes.pop(channel_dim)
        rows, self._inner = (sizes[0], sizes[1:]) if sizes else (1, [])
        length = math.prod(self._inner)
        rows_per_sample = rows / max(n_samples, 1)
        n = max(1, math.ceil(wanted / max(rows_per_sample, 1.0)))
        every = max(1, int(rows_per_sample // wanted))
        self.is_all = not sizes or (every == 1 and n >= length)
        per_sample = max(int(rows_per_sample), 1)  # rows of one sample: its windows or regions
        self._sample = (torch.arange(first_row, first_row + rows) // per_sample).repeat_interleave(length)
        if self.is_all:
            return
        row = torch.arange(-first_row % every, rows, every)
        n = min(n, length)
        part = torch.arange(n)
        shift = torch.frac((first_row + row).double().mul(n).unsqueeze(1).add(part).mul(_STEP))
        self._sample = ((first_row + row) // per_sample).repeat_interleave(n)
        self._row = row.unsqueeze(1)
        self._flat = (shift + part).mul(length / max(n, 1)).long().clamp_(max=max(length - 1, 0))

    def is_second_half(self, device: torch.device) -> Tensor:
        """Return which of the positions ``[positions]`` belong to every other of the samples."""
        return (self._sample % 2 == 1).to(device)

    def take(self, output: Tensor) -> Tensor:
        """Return ``[channels, positions]`` of an output, or of something else of the same size but for its channels."""
        last = output.movedim(self.channel_dim, -1)
        if not self.is_all:
            places = torch.unravel_index(self._flat.to(output.device), self._inner)
            index = [self._row.to(output.device), *places]
            last = last[tuple(index)]
        return last.reshape(-1, last.shape[-1]).T
