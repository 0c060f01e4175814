"""The weights on a tile: reading them, writing them, and telling whether they were trained since."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn


def weights_on(tile: Any) -> Tensor:
    """Return the weights ``[out, in]`` that a tile holds, detached; a compiled tile gives a copy."""
    weight = getattr(tile.tile, "weight", None)
    return weight.detach() if isinstance(weight, Tensor) else tile.tile.get_weights()


def write_weights(tile: Any, weights: Tensor) -> None:
    """Give a tile other weights, as a new tensor: a gradient under way may still need the old one."""
    parameter = getattr(tile.tile, "weight", None)
    if isinstance(parameter, nn.Parameter):
        parameter.data = weights.to(tile.device, copy=True)
    else:
        tile.tile.set_weights(weights.cpu())


def note_written(tile: Any) -> None:
    """Take the weights that a tile holds now for those we wrote, so that later training is noticed."""
    tile._nabn_written = WrittenWeights(tile)


def was_trained(tile: Any) -> bool:
    """Whether an optimizer has changed a tile's weights since `note_written`.

    aihwkit keeps the reference of the first programming and would program that again, losing the training.
    """
    written: WrittenWeights | None = getattr(tile, "_nabn_written", None)
    return written is not None and written.was_trained(tile)


class WrittenWeights:
    """How a tile's weights were when we wrote them.

    Optimizers change a parameter in place, which its version counter tells; aihwkit's own programming and drift do not
    touch the counter. A copy of the tile starts counting anew: there a checksum, renewed when copying, tells.
    """

    def __init__(self, tile: Any) -> None:
        parameter = _trainable(tile)
        self._tile: weakref.ref[Any] | None = weakref.ref(tile)
        self._parameter_id: int | None = id(parameter)
        self._version = getattr(parameter, "_version", 0)
        self._checksum: int | None = _checksum(tile)

    def was_trained(self, tile: Any) -> bool:
        """Return whether an optimizer has changed the weights since."""
        parameter = _trainable(tile)
        if id(parameter) == self._parameter_id:
            return bool(getattr(parameter, "_version", 0) != self._version)
        return _checksum(tile) != self._checksum

    def __getstate__(self) -> dict[str, Any]:
        tile = None if self._tile is None else self._tile()
        checksum = self._checksum
        if tile is not None:
            checksum = None if self.was_trained(tile) else _checksum(tile)
        return {"_tile": None, "_parameter_id": None, "_version": 0, "_checksum": checksum}


def _trainable(tile: Any) -> Tensor | None:
    """The parameter an optimizer sees: of the torch tile, or the one a compiled tile shares its memory with."""
    return getattr(tile.tile, "weight", getattr(tile, "shared_weights", None))


def _checksum(tile: Any) -> int:
    """The sum of the weights' bit patterns, in words of 64: as fast as memory, on any device."""
    flat = weights_on(tile).reshape(-1)
    if flat.storage_offset() % 2:
        flat = flat.clone()
    even = flat.numel() // 2 * 2
    return int(flat[:even].view(torch.int64).sum()) + int(flat[even:].view(torch.int32).sum())
