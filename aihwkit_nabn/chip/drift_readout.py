"""Reading a tile for its drift compensation without sending an identity matrix through it.

aihwkit's compensations drive one input line at a time and average the magnitudes of what comes out, as one product with
``eye(in_size)``: for 4608 inputs that takes seconds and gigabytes. What comes out of a perfect tile is its weights;
out of converters and output noise, each weight times the converted unit input, passed on.
"""

from __future__ import annotations

import math
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

from aihwkit_nabn.simulator.product.crossbar import NOISE
from aihwkit_nabn.simulator.product.physics.converters import input_converter, output_converter
from aihwkit_nabn.simulator.product.physics.effect import Currents, Reading, add_in_place, disturbed
from aihwkit_nabn.simulator.product.physics.inputs import disturbed_inputs
from aihwkit_nabn.simulator.product.physics.readout import effects_of
from aihwkit_nabn.simulator.product.tiles import output_values
from aihwkit_nabn.simulator.product.vectors import CrossbarTile

#: Outputs computed at a time: they fit the second-level cache, and memory does not grow with the tile.
_CHUNK = 1 << 16

_KNOWN_READOUTS = (GlobalDriftCompensation.readout, PerColumnDriftCompensation.readout)
_KNOWN_VECTORS = (GlobalDriftCompensation.get_readout_tensor, PerColumnDriftCompensation.get_readout_tensor)
_KNOWN_BASELINES = (BaseDriftCompensation.init_baseline, GlobalDriftCompensationWithExactReference.init_baseline)
_NAME = "_forward_drift_readout_tensor"


class TypedReadout(BaseDriftCompensation):  # type: ignore[misc]  # aihwkit comes without types
    """Another compensation, its readout vectors in the tile's data type; aihwkit always makes them float32."""

    def __init__(self, compensation: BaseDriftCompensation, dtype: torch.dtype) -> None:
        super().__init__()
        self.compensation = compensation
        self.dtype = str(dtype).removeprefix("torch.")  # as chip files can hold it

    def init_baseline(self, tile: Any) -> Any:
        """Return the readout right after programming."""
        return self.compensation.init_baseline(tile)

    def get_readout_tensor(self, in_size: int) -> Tensor:
        """Return the vectors to read with."""
        vectors: Tensor = self.compensation.get_readout_tensor(in_size)
        return vectors.to(getattr(torch, self.dtype))

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


@contextmanager
def direct_readout(tile: Any) -> Iterator[None]:
    """Let aihwkit's own drift compensations read `tile` directly inside the block.

    Inside, the tile's readout gives the mean magnitude over all one-hot inputs and outputs, ``[1, 1]``, or at each
    output, ``[1, out]``: of these the compensation finds what it would of the whole ``[in, out]`` matrix.
    Compensations with a readout of their own, and tiles whose product is not aihwkit's, are left to aihwkit.
    """
    compensation = getattr(tile.rpu_config, "drift_compensation", None)
    kind: Any = type(compensation.compensation if isinstance(compensation, TypedReadout) else compensation)
    per_output = getattr(kind, "readout", None) is PerColumnDriftCompensation.readout
    means = _output_means(tile, per_output) if _is_known(kind) else None
    if means is None:
        yield
        return

    def read(reset_if: bool = False, exact_reference: bool = False) -> Tensor:
        if not reset_if and tile.drift_readout_tensor is not None:  # someone gave it other vectors since programming
            return type(tile)._forward_drift_readout_tensor(tile, reset_if, exact_reference)  # type: ignore[no-any-return]
        tile.drift_readout_tensor = None
        if exact_reference:
            return _weight_means(tile.reference_combined_weights.to(tile.device), per_output)
        return means()

    tile.__dict__[_NAME] = torch.no_grad()(read)
    try:
        yield
    finally:
        tile.__dict__.pop(_NAME, None)


def _output_means(tile: Any, per_output: bool) -> Callable[[], Tensor] | None:
    """Return what reads a tile directly, or None where aihwkit has to."""
    if getattr(type(tile), _NAME, None) is not InferenceTileWithPeriphery._forward_drift_readout_tensor:
        return None
    if tile.in_trans or tile.out_trans or tile.analog_bias or tile.in_size * tile.out_size == 0:
        return None
    simulator = tile.tile
    ours = type(simulator) is CrossbarTile
    if ours or (type(simulator) is TorchSimulatorTile and simulator._analog_mvm is AnalogMVM):
        io, per_vector = simulator._f_io, ours and simulator._f_io.bound_management != BoundManagementType.NONE
        if io.is_perfect or io.mv_type == AnalogMVType.IDEAL:
            return lambda: _weight_means(simulator.weight, per_output)
        if io.inp_noise > 0.0:  # on all inputs, and reaches all outputs: a product it must be
            of_batch = not ours and io.bound_management != BoundManagementType.NONE
            return None if of_batch else lambda: _chunked_means(tile)
        return lambda: _unclipped_means(tile, per_output) if per_vector else _one_hot_means(simulator, per_output)
    if type(tile) is InferenceTile:
        if tile.rpu_config.forward.is_perfect and not tile.rpu_config.modifier.enable_during_test:
            return lambda: _weight_means(simulator.get_weights().to(tile.device), per_output)
        return lambda: _chunked_means(tile)
    return None


def _is_known(kind: Any) -> bool:
    return (
        issubclass(kind, BaseDriftCompensation)
        and kind.readout in _KNOWN_READOUTS
        and kind.get_readout_tensor in _KNOWN_VECTORS
        and kind.init_baseline in _KNOWN_BASELINES
        and kind.apply is BaseDriftCompensation.apply
    )


def _weight_means(weights: Tensor, per_output: bool) -> Tensor:
    """Return the mean |weight| of ``[out, in]``, or of each row."""
    weights = weights.detach()
    sums = [part.abs().sum(1 if per_output else None) for part in weights.split(_rows(weights))]
    return _means(sums, weights, per_output)


def _rows(weights: Tensor) -> int:
    return max(1, _CHUNK // weights.shape[1])


def _means(sums: list[Tensor], weights: Tensor, per_output: bool) -> Tensor:
    if per_output:
        return torch.cat(sums)[None] / weights.shape[1]
    return torch.stack(sums).sum().view(1, 1) / weights.numel()


def _one_hot_means(simulator: TorchSimulatorTile, per_output: bool) -> Tensor:
    """Return what a torch tile, aihwkit's or ours, reads out: its product, written out for inputs with one hot line."""
    io, reduction = simulator._f_io, 1.0
    manages_bounds = io.bound_management != BoundManagementType.NONE
    step = 2.0 * io.inp_bound * (1.0 / io.inp_res if io.inp_res > 1.0 else io.inp_res)
    while True:
        means, is_clipped = _one_hot_pass(simulator, reduction, per_output)
        exhausted = reduction > io.max_bm_factor or (step > 0.0 and reduction > io.max_bm_res / step)
        if not (manages_bounds and is_clipped) or exhausted:
            return means
        reduction *= 2.0  # of the whole batch, as in aihwkit


def _unclipped_means(tile: Any, per_output: bool) -> Tensor:
    """As `_one_hot_means`; where an output is clipped, each input vector has a bound management of its own."""
    means, is_clipped = _one_hot_pass(tile.tile, 1.0, per_output)
    return _chunked_means(tile) if is_clipped else means


def _one_hot_pass(simulator: TorchSimulatorTile, reduction: float, per_output: bool) -> tuple[Tensor, bool]:
    """Return the means and whether any output was clipped, all inputs divided by `reduction`."""
    weights, io = simulator.weight.detach(), simulator._f_io
    outputs = output_values(simulator, io, ranges=False)  # the drift readout has the ADC's range of the settings
    hot = weights.new_ones(weights.shape[1], 1)
    largest = AnalogMVM._compute_noise_management(input_=hot[:1], nm_type=io.noise_management, io_pars=io)
    scale = 1.0 / float(largest) / reduction
    dac, adc = input_converter(io), output_converter(io)
    hot = disturbed_inputs(dac.levels_(hot.mul_(scale)).mul_(dac.unit), dac, io, 1.0).T
    noise = outputs.get(NOISE, io.out_noise)
    effects = effects_of(io, noise)
    rows = _rows(weights)
    scratch = torch.empty_like(weights[:rows])

    def normal(like: Tensor) -> Tensor:
        return scratch[: like.shape[0]].normal_()

    def dither(levels: Tensor) -> Tensor:
        return levels.add_(scratch[: levels.shape[0]].uniform_(-0.5, 0.5))

    sums, is_clipped = [], False
    for start in range(0, weights.shape[0], rows):
        part = weights[start : start + rows]

        def of(values: Any, start: int = start) -> Any:
            return values[start : start + rows].view(-1, 1) if isinstance(values, Tensor) else values

        currents = _LineCurrents(part, hot)
        at = Reading(
            unit=1.0,
            noise=of(noise),
            outputs={name: of(values) for name, values in outputs.items()},
            normal=normal,
            add=_add,
        )
        out = disturbed(currents.product, effects, [effect.flows(currents) for effect in effects], at)
        if adc.step:
            adc.round_(out.div_(adc.step), dither).mul_(adc.step)
        out.abs_()
        if math.isfinite(adc.bound):
            is_clipped = is_clipped or bool(out.amax() > adc.bound)
            out.clamp_(max=adc.bound)
        sums.append(out.sum(1 if per_output else None))
    return _means(sums, weights, per_output) * (io.out_scale / scale), is_clipped


class _LineCurrents(Currents):
    """What flows through weights ``[out, in]`` where each input ``[1, in]`` comes alone."""

    def __init__(self, weights: Tensor, hot: Tensor) -> None:
        self.weights, self.hot, self.product = weights, hot, weights * hot

    @property
    def depth(self) -> Tensor:
        n = self.hot.shape[1]
        return torch.arange(n, dtype=self.hot.dtype, device=self.hot.device) / n

    def squares(self, strength: float, weighted: bool) -> Tensor:
        devices = self.weights.abs() if weighted else torch.ones_like(self.weights)
        return devices * (self.hot * strength).square()

    def total(self, g_ratio: float) -> Tensor:
        return self.weights.abs() * (self.hot.abs() * (self.hot.shape[1] / g_ratio))

    def by_row(self, factors: Tensor) -> Tensor:
        return self.product * factors


def _add(y: Tensor, a: Tensor, b: Tensor | float, scale: float = 1.0) -> Tensor:
    # In two roundings where there is a factor: a chip's drift compensation hangs on the last bit.
    return add_in_place(y, a, b) if scale == 1.0 else y.add_(a * b * scale)


def _chunked_means(tile: Any) -> Tensor:
    """Send the one-hot inputs through the tile's own forward pass, some at a time."""
    size = tile.in_size
    count = max(1, _CHUNK // max(size, tile.out_size))
    total = torch.zeros(tile.out_size, dtype=tile.get_dtype(), device=tile.device)
    for start in range(0, size, count):
        inputs = torch.zeros(min(count, size - start), size, dtype=total.dtype, device=total.device)
        inputs.diagonal(start).fill_(1.0)
        total += tile.tile.forward(inputs, False, False, False, True, tile.non_blocking).abs().sum(0)
    means: Tensor = total[None] / size
    return means
