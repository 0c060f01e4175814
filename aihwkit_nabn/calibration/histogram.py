"""Count absolute values in bins; memory does not grow with their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.errors import CalibrationError

_BINS = 2048
_PER_OCTAVE = 8


class AbsHistogram:
    """Counts absolute values in equal bins from 0 to a bound that doubles when it is exceeded.

    Attributes:
        maximum: The largest value so far.
        n_zeros: How many values were exactly 0; they are not in the bins.
    """

    def __init__(self, name: str = "values") -> None:
        self.name = name
        self.bound = 0.0
        self.maximum = 0.0
        self.n_zeros = 0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor.

        Raises:
            CalibrationError: one is not finite.
        """
        if values.numel() == 0:
            return
        values = values.detach().abs().flatten()
        top = float(values.max())
        if not math.isfinite(top):
            raise CalibrationError(f"the input of layer {self.name!r} is not finite")
        self.maximum = max(self.maximum, top)
        zeros = values.numel() - int(torch.count_nonzero(values))
        self.n_zeros += zeros
        if top == 0.0:
            return
        if self.bound == 0.0:
            self.bound = top
        while self.bound < top:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.bound *= 2.0
        # Single precision counts exactly up to 16 million only, so large tensors are counted in parts.
        for part in values.split(2**23):
            self.counts += torch.histc(part.float(), _BINS, 0.0, self.bound).double().cpu()
        self.counts[0] -= zeros

    @property
    def edges(self) -> Tensor:
        """Upper edges of the bins."""
        return torch.arange(1, _BINS + 1, dtype=torch.float64) * (self.bound / _BINS)

    def quantile(self, q: float) -> float:
        """Return the value that the share `q` of all values does not exceed, to a bin's width."""
        if q >= 1.0:
            return self.maximum
        wanted = q * self.n_values - self.n_zeros
        index = int(torch.searchsorted(self.counts.cumsum(0), max(wanted, 0.0)))
        return min(float(self.edges[min(index, _BINS - 1)]), self.maximum)

    def clipped(self) -> Tensor:
        """Return the mean squared error of cutting values off at each of `edges`."""
        edges, counts = self.edges, self.counts
        middles = edges - edges[0] / 2
        return _cut_off(counts, middles, edges) / self.n_values

    @property
    def n_values(self) -> float:
        """How many values have been counted."""
        return float(self.counts.sum()) + self.n_zeros


class LogHistogram:
    """Counts absolute values of several kinds in bins of an eighth of an octave, from 2^-30 to 2^30.

    Attributes:
        counts: ``[kinds, bins]``; what is smaller than all bins, zeros too, is in the first.
        edges: ``[bins]`` upper edges.
    """

    def __init__(self, name: str, n_kinds: int) -> None:
        self.name = name
        self.counts = torch.zeros(n_kinds, 60 * _PER_OCTAVE, dtype=torch.int64)
        self.edges = torch.exp2(torch.arange(1, 60 * _PER_OCTAVE + 1, dtype=torch.float64) / _PER_OCTAVE - 30.0)

    def add(self, values: Tensor, kinds: Tensor) -> None:
        """Count the values of ``[n, ...]``, row i among those of ``kinds[i]``.

        Raises:
            CalibrationError: one is not finite.
        """
        n_bins = self.counts.shape[1]
        for row, kind in zip(values.flatten(1), kinds.tolist(), strict=True):
            places = row.abs().float().log2_().add_(30.0).mul_(_PER_OCTAVE)
            if not bool(places.amax() < math.inf):
                raise CalibrationError(f"the output of layer {self.name!r} is not finite")
            found = torch.bincount(places.clamp_(0, n_bins - 1).to(torch.int64), minlength=n_bins)
            self.counts[kind] += found.cpu()

    def clipped(self) -> Tensor:
        """Return the mean squared error of cutting values off at each of `edges`, ``[kinds, bins]``."""
        middles = self.edges * 2.0 ** (-0.5 / _PER_OCTAVE)
        counts = self.counts.double()
        total = _cut_off(counts, middles, self.edges).clamp(min=0.0)
        return total / counts.sum(1, keepdim=True).clamp(min=1.0)

    def maximum(self) -> float:
        """Return the upper edge of the last bin in which anything has been counted, 0 if there is none."""
        found = self.counts[:, 1:].sum(0).nonzero()
        return float(self.edges[1 + int(found[-1])]) if len(found) else 0.0


def _cut_off(counts: Tensor, middles: Tensor, edges: Tensor) -> Tensor:
    """Return the sum of ``(v - edge)^2`` over all values v above each edge, from the sums of their powers."""
    above = [(counts * middles**power).flip(-1).cumsum(-1).flip(-1) for power in range(3)]
    above = [F.pad(part[..., 1:], (0, 1)) for part in above]
    return above[2] - 2.0 * edges * above[1] + edges**2 * above[0]
