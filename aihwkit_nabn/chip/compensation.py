"""aihwkit's drift compensations on tiles of any data type."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.inference.compensation.base import BaseDriftCompensation
from torch import Tensor


class TypedReadout(BaseDriftCompensation):  # type: ignore[misc]  # aihwkit comes without types
    """Another compensation, its readout vectors in the tile's data type; aihwkit always makes them float32.

    Args:
        compensation: What does the work.
        dtype: Of the tile.
    """

    def __init__(self, compensation: BaseDriftCompensation, dtype: torch.dtype) -> None:
        super().__init__()
        self.compensation = compensation
        self.dtype = dtype

    def init_baseline(self, tile: Any) -> Any:
        """Return the readout right after programming."""
        return self.compensation.init_baseline(tile)

    def get_readout_tensor(self, in_size: int) -> Tensor:
        """Return the vectors to read with."""
        vectors: Tensor = self.compensation.get_readout_tensor(in_size)
        return vectors.to(self.dtype)

    def readout(self, out_tensor: Tensor) -> Tensor:
        """Return what is compared."""
        compared: Tensor = self.compensation.readout(out_tensor)
        return compared

    def apply(self, forward_output: Tensor, ref_value: Tensor) -> Tensor:
        """Return the factor that makes up for the drift."""
        factor: Tensor = self.compensation.apply(forward_output, ref_value)
        return factor

    def __str__(self) -> str:
        return str(self.compensation)


def match_readout_dtype(tile: Any) -> None:
    """Make a tile that is not float32 read out for its drift compensation in its own data type."""
    compensation = getattr(tile.rpu_config, "drift_compensation", None)
    if compensation is None or isinstance(compensation, TypedReadout) or tile.get_dtype() == torch.float32:
        return
    tile.rpu_config.drift_compensation = TypedReadout(compensation, tile.get_dtype())
