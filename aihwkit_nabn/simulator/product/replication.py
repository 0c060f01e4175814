"""Short columns copied over the free rows of their tile, driven with the same inputs and read as one sum.

A depthwise convolution fills 9 of a tile's 512 rows. With n copies of a column the signal is n times as large against
the noise and the steps of the output, every copy has devices of its own, whose errors average out, and more current
flows along the wires. The sum is divided by n digitally. No tile is added: only rows that would have been empty.
"""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.tiles.array import TileModuleArray
from torch import Tensor

from aihwkit_nabn.errors import NabnError


class ReplicatedArray(TileModuleArray):
    """An array whose columns stand on their tile several times, one copy below the other.

    It takes and gives matrices ``[out, in]`` and inputs ``[..., in]`` as if there were one copy; its tiles are as they
    are on the chip, ``[out, copies * in]``. All copies fit one below the other.
    """

    def __init__(self, out_size: int, in_size: int, rpu_config: Any, bias: bool = False, *, copies: int) -> None:
        super().__init__(out_size, in_size * copies, rpu_config, bias)
        self.in_size = in_size
        self.copies = copies

    @torch.no_grad()
    def set_weights(self, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> None:
        """Give every copy the matrix ``[out, in]``; the digital scale makes their sum the matrix again."""
        matrix = weight.detach().reshape(self.out_size, self.in_size).repeat(1, self.copies)
        for tile, part in zip(self.array[0], matrix.split(self.out_sizes), strict=True):
            tile.set_mapping_scales(None)
            tile.set_weights(part, None, **kwargs)
            scales = tile.get_mapping_scales()
            tile.set_mapping_scales(1.0 / self.copies if scales is None else scales / self.copies)
        if self.bias is not None and bias is not None:
            self.bias.data = bias.detach().to(self.bias.device)

    @torch.no_grad()
    def get_weights(self, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Return the matrix ``[out, in]`` that the copies make together, and the bias."""
        weight, bias = super().get_weights(**kwargs)
        return folded(weight, self.copies), bias

    def forward(self, x_input: Tensor, tensor_view: tuple[int, ...] | None = None) -> Tensor:
        """Drive all copies with the same inputs ``[..., in]``."""
        out: Tensor = super().forward(repeated(x_input, self.copies), tensor_view)
        return out


def copies_of(array: TileModuleArray) -> int:
    """Return how often each column of the array stands on its tile."""
    return array.copies if isinstance(array, ReplicatedArray) else 1


def folded(matrix: Tensor, copies: int) -> Tensor:
    """Return ``[out, in]``, the sum over the copies in ``[out, copies * in]``."""
    return matrix if copies == 1 else matrix.unflatten(1, (copies, -1)).sum(1)


def repeated(x: Tensor, copies: int) -> Tensor:
    """Return the inputs ``[..., copies * in]`` of all copies for ``[..., in]``."""
    return x if copies == 1 else x.repeat(*[1] * (x.dim() - 1), copies)


def check_replicate_rows(value: object, max_input_size: int) -> None:
    """Raise unless `value` is a setting for tiles with so many rows (0: unlimited).

    Raises:
        NabnError: it is neither a truth value nor an integer >= 1, or asks for all free rows of an unlimited tile.
    """
    if not isinstance(value, int) or value < 1 and value is not False:
        raise NabnError(f"replicate_rows must be true, false or a largest number of copies >= 1, got {value!r}")
    if value is True and max_input_size <= 0:
        raise NabnError("replicate_rows=True fills the rows of a tile, but mapping.max_input_size gives no limit")


def number_of_copies(rpu_config: Any, n_rows: int) -> int:
    """Return how often a column of `n_rows` goes on a tile of a configuration.

    As often as it fits: the more copies, the less every error weighs. `replicate_rows` can set a lower limit.

    Raises:
        NabnError: see `check_replicate_rows`.
    """
    wanted = getattr(rpu_config, "replicate_rows", False)
    if wanted is False:
        return 1
    limit = rpu_config.mapping.max_input_size
    check_replicate_rows(wanted, limit)
    fits = limit // n_rows if limit > 0 else wanted
    return max(1, fits if wanted is True else min(fits, wanted))


def array_for(rpu_config: Any, out_size: int, in_size: int, bias: bool) -> TileModuleArray:
    """Return the tiles for a matrix ``[out, in]``, its columns copied where the configuration asks for it.

    Raises:
        NabnError: see `check_replicate_rows`, or the configuration has an array of its own.
    """
    copies = number_of_copies(rpu_config, in_size)
    if copies == 1:
        array: TileModuleArray = rpu_config.tile_array_class(out_size, in_size, rpu_config, bias)
        return array
    if rpu_config.tile_array_class is not TileModuleArray:
        name = rpu_config.tile_array_class.__name__
        raise NabnError(f"replicate_rows needs aihwkit's TileModuleArray as rpu_config.tile_array_class, got {name}")
    return ReplicatedArray(out_size, in_size, rpu_config, bias, copies=copies)
