"""Many random numbers on the CPU, faster than torch draws them: bits of numpy's SFC64 through the normal quantiles.

torch draws normal numbers on one thread, 3 to 4.5 ns each, which is most of what noise adds to an analog pass. SFC64
gives 16 bits in 0.5 ns, and torch takes quantiles on all its threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


class NumberStream:
    """Normal and uniform numbers in an order that depends on the seed alone, not on how many are asked for at once.

    A number has 16 random bits: normal ones are the midpoint quantiles of 65,536 equally likely steps, scaled to a
    variance of exactly 1; the largest is 4.33. An ADC's step is some hundred times coarser.

    Args:
        seed: Gives an integer >= 0 when the first normal, and when the first uniform number is asked for.
    """

    def __init__(self, seed: Callable[[], int]) -> None:
        self._seed = seed
        self._normal: _Words | None = None
        self._uniform: _Words | None = None

    def normal_(self, target: Tensor) -> Tensor:
        """Fill `target`, contiguous on the CPU, with numbers of mean 0 and variance 1."""
        if self._normal is None:
            self._normal = _Words(self._seed())
        work = target if target.dtype in (torch.float32, torch.float64) else torch.empty_like(target, dtype=torch.float)
        self._normal.copy_to(work).mul_(2.0**-15).erfinv_().mul_(_scale())
        return target if work is target else target.copy_(work)

    def uniform_(self, target: Tensor) -> Tensor:
        """Fill `target`, contiguous on the CPU, with numbers between -0.5 and 0.5."""
        if self._uniform is None:
            self._uniform = _Words(self._seed())
        return self._uniform.copy_to(target).mul_(2.0**-16)


class _Words:
    """Random 16-bit integers, one after the other."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.SFC64(seed)
        self._kept = np.empty(0, dtype=np.int16)

    def copy_to(self, target: Tensor) -> Tensor:
        """Fill `target` with the middles of the integers' steps, from -32767.5 to 32767.5."""
        n = target.numel()
        words = self._bits.random_raw(max(0, -(-(n - self._kept.size) // 4))).view(np.int16)
        if self._kept.size:
            words = np.concatenate([self._kept, words])
        self._kept = words[n:].copy()
        return target.copy_(torch.from_numpy(words[:n]).view(target.shape)).add_(0.5)


@functools.cache
def _scale() -> float:
    """Return what makes the variance of the quantiles 1."""
    middles = (torch.arange(-(2**15), 2**15, dtype=torch.float64) + 0.5) * 2.0**-15
    return float(torch.erfinv(middles).square().mean().rsqrt())
