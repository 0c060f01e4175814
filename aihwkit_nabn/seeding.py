"""Seeds and random streams: the same chip from the same seed, and the caller's generators left as they were."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.drawing import Redirected, drawing_from
from aihwkit_nabn.errors import check_count


def check_seed(field: str, seed: object) -> int:
    """Return `seed` if it is a non-negative integer.

    Raises:
        NabnError: it is anything else.
    """
    return check_count(field, seed)


def derive_seed(seed: int, *keys: object) -> int:
    """Return a seed of its own for `keys` under `seed`, the same on every machine and in every order of calls.

    Args:
        seed: The run's or the chip's seed, an integer >= 0.
        keys: What the seed is for, e.g. a layer's name; turned into text with ``str``.

    Returns:
        An integer in ``[0, 2**63)``, from SHA-256, so that neighbouring seeds give unrelated streams.
    """
    text = "\x1f".join([str(check_seed("seed", seed)), *map(str, keys)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class _Block:
    """An `isolated_rng` block: what the generators held before it."""

    def __init__(self) -> None:
        self.before = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def restore(self) -> None:
        torch.set_rng_state(self.before[0])
        np.random.set_state(self.before[1])
        random.setstate(self.before[2])


# The blocks that are open, of all threads, in the order in which they were entered.
_open: list[_Block] = []
_opening = threading.Lock()


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the CPU generators of torch, numpy and Python inside the block; restore them after it.

    For code of others that draws from them. Threads share them: when the last of several blocks is left, in whatever
    order, they are what they were before the first; in between, code in one block moves the numbers of another. What
    must be the same on any number of threads draws in a `private_rng` block.
    """
    with _opening:
        block = _Block()
        _open.append(block)
        torch.random.default_generator.manual_seed(seed % 2**64)  # torch takes no larger ones
        np.random.seed(seed % 2**32)
        random.seed(seed)
    try:
        yield
    finally:
        with _opening:
            place = _open.index(block)
            if place + 1 < len(_open):
                _open[place + 1].before = block.before
            else:
                block.restore()
            del _open[place]


@contextmanager
def isolated_run(model: torch.nn.Module, seed: int) -> Iterator[None]:
    """Do the same with the generators of the model's CUDA devices too."""
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices) if devices else nullcontext(), isolated_rng(seed):
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


# Held where code draws from generators that all threads share.
_shared = threading.RLock()


@contextmanager
def private_rng(seed: int, *, torch_only: bool = True) -> Iterator[None]:
    """Let what this thread draws inside the block come from generators of its own, whatever other threads draw.

    On the CPU; programming noise is drawn there whatever device the tiles are on. The numbers are those of an
    `isolated_rng` block.

    Args:
        seed: Of the generators, an integer >= 0.
        torch_only: Whether the code inside draws through torch alone. Numpy and Python have one generator for all
            threads: with False they are seeded and restored too, and threads wait for each other.
    """
    own = torch.Generator().manual_seed(seed % 2**64)
    if torch_only:
        with drawing_from(own):
            yield
        return
    with _shared, isolated_rng(seed), drawing_from(own):
        yield


class RandomStream:
    """A `torch.Generator` that is made on first use, on the device it is asked for, and that can be deep-copied."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the stream's generator on `device`, seeded when first asked for."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device=device)
            self._generators[device].manual_seed(self.seed)
        return self._generators[device]

    def restart(self, seed: int | None = None) -> None:
        """Begin again, from `seed` if one is given."""
        self.seed = self.seed if seed is None else seed
        self._generators.clear()

    def integer(self) -> int:
        """Return the next integer of the stream on the CPU, in ``[0, 2**62)``, to seed other generators with."""
        return int(torch.randint(2**62, (), generator=self.generator(torch.device("cpu"))))

    def as_global(self, *inputs: Tensor) -> AbstractContextManager[object]:
        """Let what this thread draws from torch's global generators, on any device, come from this stream instead.

        Where torch records operations on `inputs` for later, everything stays as it is: a record holds no generator.
        """
        return nullcontext() if native.is_recorded(*inputs) else Redirected(self.generator)

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomStream:
        twin = RandomStream(self.seed)
        for device, generator in self._generators.items():
            twin.generator(device).set_state(generator.get_state())
        return twin

    def __getstate__(self) -> dict[str, Any]:
        states = {str(device): generator.get_state() for device, generator in self._generators.items()}
        return {"seed": self.seed, "states": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["seed"])  # type: ignore[misc]
        for device, generator_state in state["states"].items():
            self.generator(torch.device(device)).set_state(generator_state)
