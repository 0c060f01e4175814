"""Seeds and random streams: the same chip from the same seed, and the caller's generators left as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from aihwkit_nabn.errors import NabnError


def check_seed(field: str, seed: object) -> int:
    """Return `seed` if it is a non-negative integer.

    Raises:
        NabnError: it is anything else.
    """
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise NabnError(f"{field} must be an integer >= 0, got {seed!r}")
    return int(seed)


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


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed the CPU generators of torch, numpy and Python inside the block; restore them after it.

    Programming noise is drawn on the CPU whatever device the tiles are on, so CUDA generators are not touched.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_generators(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_generators(seed: int) -> None:
    """Seed the CPU generators of torch, numpy and Python; for use inside an `isolated_rng` block."""
    torch.random.default_generator.manual_seed(seed % 2**64)  # torch takes no larger ones
    np.random.seed(seed % 2**32)
    random.seed(seed)


class RandomStream:
    """A `torch.Generator` that is made on first use, on the device it is asked for, and that can be deep-copied.

    Args:
        seed: Where the stream starts.
    """

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

    @contextmanager
    def as_global(self, device: torch.device) -> Iterator[None]:
        """Let code that draws from torch's global generator of `device` draw from this stream instead."""
        stream = self.generator(device)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            shared = torch.cuda.default_generators[index]
        else:
            shared = torch.random.default_generator
        saved = shared.get_state()
        shared.set_state(stream.get_state())
        try:
            yield
        finally:
            stream.set_state(shared.get_state())
            shared.set_state(saved)

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
