"""Many random numbers on the CPU, faster than torch draws them: bits of numpy's SFC64 through a table of quantiles.

torch draws normal numbers on one thread, 3 to 4.5 ns each, which is most of what noise adds to an analog pass. SFC64
gives 16 bits in 0.6 ns, and looking up their quantile takes as long; torch's erfinv takes twice that on two threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aihwkit_nabn.native import CHUNK, Numbers
from aihwkit_nabn.simulator.product.blocks import scratch_like

# index_select runs on one thread, four times faster than each of take's.
_FEW_THREADS = 3


class NumberStream:
    """Normal and uniform numbers in an order that depends on the seed alone, not on how many are asked for at once.

    They come from generators of `CHUNK` numbers each, so that several threads can draw them at once. A number has 16
    random bits: normal ones are the midpoint quantiles of 65,536 equally likely steps, scaled to a variance of exactly
    1; the largest is 4.33. An ADC's step is some hundred times coarser.

    `seed` gives an integer >= 0 when the first normal, and when the first uniform number is asked for.
    """

    def __init__(self, seed: Callable[[], int]) -> None:
        self._seed = seed
        self._words: dict[str, _Words] = {}

    def _of(self, kind: str) -> _Words:
        if kind not in self._words:
            self._words[kind] = _Words(self._seed())
        return self._words[kind]

    def normal_(self, target: Tensor) -> Tensor:
        """Fill `target`, contiguous on the CPU, with numbers of mean 0 and variance 1."""
        work = target if target.dtype in (torch.float32, torch.float64) else torch.empty_like(target, dtype=torch.float)
        words = torch.from_numpy(self._of("normal").take(target.numel()))
        few = torch.get_num_threads() <= _FEW_THREADS
        place = scratch_like(words, torch.int32 if few else torch.int64).copy_(words)
        if few:
            torch.index_select(_quantiles(work.dtype), 0, place, out=work.view(-1))
        else:
            torch.take(_quantiles(work.dtype), place, out=work.view(-1))
        return target if work is target else target.copy_(work)

    def normal_source(self, n: int) -> Numbers:
        """Return where the next `n` normal numbers come from; the ones after them begin with a new generator."""
        words = self._of("normal")
        return Numbers(key=words.key, first=words.skip(n), table=_quantiles(torch.float32))

    def begin(self) -> None:
        """Let the next number be a new generator's first."""
        for words in self._words.values():
            words.skip(0)

    def uniform_(self, target: Tensor) -> Tensor:
        """Fill `target`, contiguous on the CPU, with numbers between -0.5 and 0.5."""
        words = self._of("uniform").take(target.numel()).view(np.int16)
        return target.copy_(torch.from_numpy(words).view(target.shape)).add_(0.5).mul_(2.0**-16)


class _Words:
    """Random 16-bit integers, one after the other, from generators that have `key` in common."""

    def __init__(self, seed: int) -> None:
        first, second = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self.key = int(first), int(second)
        self._bits = np.random.SFC64(0)
        self._next = 0  # generator
        self._left = 0  # numbers of the present one that have not been drawn
        self._kept = np.empty(0, dtype=np.uint16)

    def skip(self, n: int) -> int:
        """Begin with a new generator, leave out as many as `n` numbers take, and return the first one's number."""
        first = self._next
        self._next += -(-n // CHUNK)
        self._left = 0
        self._kept = self._kept[:0]
        return first

    def take(self, n: int) -> NDArray[np.uint16]:
        """Return the next `n`."""
        parts, have = [self._kept], self._kept.size
        while have < n:
            if self._left == 0:
                self._start(self._next)
            words = min(-(-(n - have) // 4) * 4, self._left)
            parts.append(self._bits.random_raw(words // 4).view(np.uint16))
            self._left -= words
            have += words
        whole = np.concatenate(parts) if len(parts) > 2 or parts[0].size else parts[-1]
        self._kept = whole[n:].copy()
        return whole[:n]

    def _start(self, number: int) -> None:
        state = self._bits.state
        state["state"]["state"] = np.array([*self.key, number, 1], dtype=np.uint64)
        self._bits.state = state
        self._bits.random_raw(12)  # as many as numpy's own seeding leaves out
        self._next, self._left = number + 1, CHUNK


@functools.cache
def _quantiles(dtype: torch.dtype) -> Tensor:
    """Return the normal quantile at the middle of each integer's step, ``[65536]``, of variance 1.

    Integers from 32,768 on stand for the negative ones, as the bits of signed integers have it.
    """
    with torch.inference_mode(False):
        signed = torch.arange(2**16, dtype=torch.float64)
        signed[2**15 :] -= 2.0**16
        values = torch.erfinv((signed + 0.5) * 2.0**-15)
        return (values * values.square().mean().rsqrt()).to(dtype)
