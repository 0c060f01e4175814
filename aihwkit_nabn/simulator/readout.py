"""Reading a tile for its drift compensation without sending an identity matrix through it.

aihwkit's compensations drive one input line at a time and average the magnitudes of what comes out, as one product with
``eye(in_size)``: for 4608 inputs that takes seconds and gigabytes. What comes out of a perfect tile is its weights;
out of converters and output noise, each weight times the converted unit input, passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.simulator.parameters.enums import AnalogMVType, BoundManagementType
from aihwkit.simulator.tiles.analog_mvm import AnalogMVM
from aihwkit.simulator.tiles.inference import InferenceTile, InferenceTileWithPeriphery
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import Tensor

from aihwkit_nabn.simulator.compensation import TypedReadout

#: Outputs computed at a time, so that memory does not grow with the tile.
_CHUNK = 1 << 18

_KNOWN_READOUTS = (GlobalDriftCompensation.readout, PerColumnDriftCompensation.readout)
_KNOWN_VECTORS = (GlobalDriftCompensation.get_readout_tensor, PerColumnDriftCompensation.get_readout_tensor)
_KNOWN_BASELINES = (BaseDriftCompensation.init_baseline, GlobalDriftCompensationWithExactReference.init_baseline)
_NAME = "_forward_drift_readout_tensor"


@contextmanager
def direct_readout(tile: Any) -> Iterator[None]:
    """Let aihwkit's own drift compensations read `tile` directly inside the block.

    Inside, the tile's readout gives ``[1, out]``, the mean magnitude at each output over all one-hot inputs, of which
    the compensation takes the mean (global) or each (per column) just as it would of the whole ``[in, out]`` matrix.
    Compensations with a readout of their own, and tiles whose product is not aihwkit's, are left to aihwkit.

    Args:
        tile: An inference tile.
    """
    means = _output_means(tile)
    if means is None:
        yield
        return

    def read(reset_if: bool = False, exact_reference: bool = False) -> Tensor:
        if not reset_if and tile.drift_readout_tensor is not None:  # someone gave it other vectors since programming
            return type(tile)._forward_drift_readout_tensor(tile, reset_if, exact_reference)  # type: ignore[no-any-return]
        tile.drift_readout_tensor = None
        if exact_reference:
            return _weight_means(tile.reference_combined_weights.to(tile.device))
        return means()

    tile.__dict__[_NAME] = torch.no_grad()(read)
    try:
        yield
    finally:
        tile.__dict__.pop(_NAME, None)


def _output_means(tile: Any) -> Callable[[], Tensor] | None:
    """Return what reads a tile directly, or None where aihwkit has to."""
    if not _is_known(getattr(tile.rpu_config, "drift_compensation", None)):
        return None
    if getattr(type(tile), _NAME, None) is not InferenceTileWithPeriphery._forward_drift_readout_tensor:
        return None
    if tile.in_trans or tile.out_trans or tile.analog_bias or tile.in_size * tile.out_size == 0:
        return None
    simulator = tile.tile
    if type(simulator) is TorchSimulatorTile and simulator._analog_mvm is AnalogMVM:
        io = simulator._f_io
        if io.is_perfect or io.mv_type == AnalogMVType.IDEAL:
            return lambda: _weight_means(simulator.weight)
        if io.inp_noise <= 0.0:
            return lambda: _one_hot_means(simulator)
        # Noise on all inputs reaches all outputs: a product it must be.
        return None if io.bound_management != BoundManagementType.NONE else lambda: _chunked_means(tile)
    if type(tile) is InferenceTile:
        is_plain = tile.rpu_config.forward.is_perfect and not tile.rpu_config.modifier.enable_during_test
        return lambda: _weight_means(simulator.get_weights().to(tile.device)) if is_plain else _chunked_means(tile)
    return None


def _is_known(compensation: object) -> bool:
    kind: Any = type(compensation.compensation if isinstance(compensation, TypedReadout) else compensation)
    return (
        issubclass(kind, BaseDriftCompensation)
        and kind.readout in _KNOWN_READOUTS
        and kind.get_readout_tensor in _KNOWN_VECTORS
        and kind.init_baseline in _KNOWN_BASELINES
        and kind.apply is BaseDriftCompensation.apply
    )


def _weight_means(weights: Tensor) -> Tensor:
    """Return the mean |weight| of each row of ``[out, in]``, as ``[1, out]``."""
    weights = weights.detach()
    rows = max(1, _CHUNK // weights.shape[1])
    return torch.cat([part.abs().mean(1) for part in weights.split(rows)])[None]


class _OneHotMVM(AnalogMVM):
    """aihwkit's product for inputs that are one-hot, given the value of the hot line only: ``[n, 1]``."""

    @classmethod
    def _matmul(cls, weight: Tensor, input_: Tensor, trans: bool = False) -> Tensor:
        return input_ * weight.T


def _one_hot_means(simulator: TorchSimulatorTile) -> Tensor:
    io, weights = simulator._f_io, simulator.weight.detach()
    # aihwkit's bound management repeats the whole batch when one output is clipped, so the batch must not be split.
    is_split = io.bound_management == BoundManagementType.NONE
    columns = max(1, _CHUNK // weights.shape[0]) if is_split else weights.shape[1]

    def outputs() -> Iterator[Tensor]:
        for part in weights.split(columns, 1):
            inputs = part.new_ones(part.shape[1], 1)
            noise = simulator.out_noise_values
            yield _OneHotMVM.matmul(part, inputs, io, False, is_test=True, out_noise_values=noise)

    return _mean_magnitudes(outputs(), weights.shape[1])


def _chunked_means(tile: Any) -> Tensor:
    """Send the one-hot inputs through the tile's own forward pass, some at a time."""
    size, dtype = tile.in_size, tile.get_dtype()
    count = max(1, _CHUNK // max(size, tile.out_size))

    def outputs() -> Iterator[Tensor]:
        for start in range(0, size, count):
            inputs = torch.zeros(min(count, size - start), size, dtype=dtype, device=tile.device)
            inputs.diagonal(start).fill_(1.0)
            yield tile.tile.forward(inputs, False, False, False, True, tile.non_blocking)

    return _mean_magnitudes(outputs(), size)


def _mean_magnitudes(outputs: Iterator[Tensor], count: int) -> Tensor:
    total: Tensor | int = 0
    for part in outputs:
        total = total + part.abs().sum(0)
    return torch.as_tensor(total)[None] / count
