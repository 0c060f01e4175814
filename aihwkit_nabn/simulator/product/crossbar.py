"""The product of a layer's tiles without unfolding: one convolution per tile row, between converters.

Where every input vector is scaled alike, converting the feature map once is the same as converting each of its windows,
and the partial sums of a tile row are one convolution of the converted map. So DAC, convolution, read noise, IR drop
and ADC act in the layer's own layout, and no window is ever laid out in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from aihwkit.simulator.parameters.enums import BoundManagementType
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.simulator.product.linear_map import LinearMap, size_product
from aihwkit_nabn.simulator.product.numbers import NumberStream
from aihwkit_nabn.simulator.product.physics.converters import (
    Converter,
    input_converter,
    output_converter,
    static_input_scale,
)
from aihwkit_nabn.simulator.product.physics.effect import Currents, Flows
from aihwkit_nabn.simulator.product.physics.inputs import disturbed_inputs, to_levels
from aihwkit_nabn.simulator.product.physics.readout import Readout, effects_of, read_out
from aihwkit_nabn.simulator.product.replication import folded

NOISE = "out_noise_values"
"""Standard deviation of each output's noise; aihwkit's tile calls it so."""
ADC_RANGE = "adc_range"
"""Range of each output's ADC in parts of the settings' own."""

VALUES_AT_ONCE = 2**20
"""Results of the second and later tile rows that are held at a time, where there are several samples: 4 MB."""


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """The tiles that share a part of a layer's inputs, side by side.

    Args:
        columns: Which columns of the layer's matrix they hold.
        weights: ``[out, copies * columns]`` of each tile in its units; outputs side by side.
        scale: What their results are multiplied with in the end, one factor or ``[out]``.
        input_range: Largest input, and what inputs are divided by; None without one. A tensor ``[1]`` where numbers
            must not be read.
        outputs: What differs from output to output, ``[out]`` each: ``NOISE`` and ``ADC_RANGE``, where they are not the
            settings', and by the effects' names what these have drawn.
        copies: How often the columns stand on their tile, driven alike and read as one sum (`replication`).
    """

    columns: range
    weights: tuple[Tensor, ...]
    scale: Tensor | float
    input_range: Tensor | float | None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    copies: int = 1

    def adc_unit(self, adc: Converter) -> Tensor | float:
        """What a level of the outputs' ADC stands for, one number or ``[out]``."""
        return adc.unit * self.outputs[ADC_RANGE] if ADC_RANGE in self.outputs else adc.unit

    @property
    def weight(self) -> Tensor:
        """``[out, copies * columns]`` of all tiles."""
        return self.weights[0] if len(self.weights) == 1 else torch.cat(self.weights, 0)

    @property
    def n_rows(self) -> int:
        """Rows of the tiles that are in use."""
        return self.copies * len(self.columns)

    @property
    def out_size(self) -> int:
        """Outputs of all tiles."""
        return sum(weight.shape[0] for weight in self.weights)


def depends_on_vector(io: IOParameters) -> str:
    """Return which setting treats each input vector by itself, so that it must be laid out; empty if none does."""
    if io.is_perfect:
        return ""
    if static_input_scale(io) is None:
        return f"noise_management={io.noise_management.name}"
    if io.bound_management != BoundManagementType.NONE:
        return f"bound_management={io.bound_management.name}"
    if io.inp_noise > 0.0:
        return f"inp_noise={io.inp_noise:g}"
    return "inp_sto_round=True" if io.inp_sto_round else ""


def product_of_rows(
    x: Tensor,
    rows: list[TileRow],
    io: IOParameters,
    linear_map: LinearMap,
    *,
    bias: Tensor | None,
    seed: Callable[[], int],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return what the tile rows make of ``[..., channels, *spatial]``, summed; settings must not depend on the vector.

    Random numbers start from `seed` on the CPU, and come from `generator` on another device.
    """
    numbers = NumberStream(seed)

    def results_of(part: Tensor, row: TileRow, total: Tensor | None) -> Tensor:
        readout = readout_of(row, io)
        return read_out(
            *analog_results(part, row, io, linear_map, readout),
            channel_dim=linear_map.channel_dim,
            numbers=numbers,
            generator=generator,
            total=total,
            bias=bias,
        )

    total = results_of(x, rows[0], None)
    parts = [(x, total)]
    if linear_map.spatial_dims and x.dim() == linear_map.spatial_dims + 2:
        samples = max(1, x.shape[0] * VALUES_AT_ONCE // max(total.numel(), 1))
        parts = list(zip(x.split(samples), total.split(samples), strict=True))
    for row in rows[1:]:
        for part, sums in parts:
            results_of(part, row, sums)
    return total


def readout_of(row: TileRow, io: IOParameters, *, in_levels: bool = True, clamp: bool = True) -> Readout:
    """Return how the results of a tile row are read out: in ADC levels, or in the tiles' units."""
    adc = output_converter(io)
    unit = row.adc_unit(adc) if in_levels else 1.0
    noise = 0.0 if io.is_perfect else row.outputs.get(NOISE, io.out_noise) / unit
    gain = unit * (1.0 if row.input_range is None else row.input_range) * (static_input_scale(io) or 1.0)
    gain *= 1.0 if io.is_perfect else io.out_scale
    effects = effects_of(io, noise)
    return Readout(
        adc=adc, unit=unit, noise=noise, gain=row.scale * gain, effects=effects, outputs=row.outputs, clamp=clamp
    )


def analog_results(
    x: Tensor, row: TileRow, io: IOParameters, linear_map: LinearMap, readout: Readout
) -> tuple[Tensor, Readout, list[Flows]]:
    """Return a tile row's results for `x` in ADC levels, their readout, and what its effects have of the currents.

    Where noise management depends on the vector, `x` must have been scaled already.
    """
    dac = input_converter(io)
    part = own_inputs(x, row, linear_map)
    assert not isinstance(row.input_range, Tensor)
    levels = to_levels(part, dac, row.input_range, static_input_scale(io) or 1.0, linear_map.channel_dim)
    levels = disturbed_inputs(levels, dac, io, dac.unit)
    unit = readout.unit.view(-1, 1) if isinstance(readout.unit, Tensor) else readout.unit
    kernel = _kernel(row, linear_map, dac.unit / unit)
    result = linear_map.apply(levels, kernel, None)
    currents = RowCurrents(levels, kernel, row, linear_map, dac.unit, unit)
    return result, readout, [effect.flows(currents) for effect in readout.effects]


def row_product(x: Tensor, row: TileRow, linear_map: LinearMap) -> Tensor:
    """Return what a tile row would make of `x` without converters and noise, in the tiles' units."""
    return linear_map.apply(own_inputs(x, row, linear_map), _kernel(row, linear_map, 1.0), None)


@dataclass(frozen=True, eq=False)
class RowCurrents(Currents):
    """What flows behind a product of `levels` with `kernel`, the weights times DAC over ADC unit."""

    levels: Tensor
    kernel: Tensor
    row: TileRow
    linear_map: LinearMap
    dac_unit: float
    adc_unit: Tensor | float

    @property
    def depth(self) -> Tensor:
        """See `Currents`."""
        n = self.row.n_rows
        return torch.arange(n, dtype=self.kernel.dtype, device=self.kernel.device) / n

    @property
    def _magnitudes(self) -> Tensor:
        # Not kept: what keeps a property takes a lock in Python 3.11, which torch can't trace.
        row = self.row
        if row.copies == 1:
            return self.kernel.abs()
        return folded(row.weight.abs(), row.copies) * (self.dac_unit / self.adc_unit)

    def squares(self, strength: float, weighted: bool) -> Tensor:
        """See `Currents`."""
        if weighted:
            devices = self._magnitudes * (strength**2 * self.dac_unit / self.adc_unit)
        else:
            own = self.kernel.new_full((self.row.out_size, len(self.row.columns)), self.row.copies)
            copies = F.pad(own, missing_columns(self.row, self.linear_map))
            devices = copies * (strength * self.dac_unit / self.adc_unit) ** 2
        # An algorithm with rounding errors may sum them.
        return self.linear_map.apply(self.levels * self.levels, devices, None).relu_()

    def total(self, g_ratio: float) -> Tensor:
        """See `Currents`."""
        devices = self._magnitudes * (self.adc_unit * self.row.n_rows / g_ratio)
        return self.linear_map.apply(self.levels.abs(), devices, None)

    def by_row(self, factors: Tensor) -> Tensor:
        """See `Currents`."""
        row = self.row
        if row.copies == 1:
            devices = self.kernel * F.pad(factors, missing_columns(row, self.linear_map))
        else:
            devices = folded(row.weight * factors, row.copies) * (self.dac_unit / self.adc_unit)
        return self.linear_map.apply(self.levels, devices, None)


def missing_columns(row: TileRow, linear_map: LinearMap) -> tuple[int, int]:
    """How many columns a tile row lacks of its first and of its last channel."""
    per_channel = size_product(linear_map.kernel_size)
    return row.columns.start % per_channel, -row.columns.stop % per_channel


def _kernel(row: TileRow, linear_map: LinearMap, unit: Tensor | float) -> Tensor:
    """Return a tile row's matrix times `unit` over all columns of its channels; every weight is read once."""
    if isinstance(unit, Tensor):
        return _kernel(row, linear_map, 1.0) * unit
    before, after = missing_columns(row, linear_map)
    if row.copies > 1:  # all in one tile row, with all columns
        return folded(row.weight, row.copies) * unit
    if len(row.weights) == 1 and unit == 1.0 and not before and not after:
        return row.weights[0]
    n = len(row.columns)
    kernel = row.weights[0].new_empty(row.out_size, before + n + after)
    kernel[:, :before] = 0.0
    kernel[:, before + n :] = 0.0
    top = 0
    for weight in row.weights:
        torch.mul(weight, unit, out=kernel[top : top + weight.shape[0], before : before + n])
        top += weight.shape[0]
    return kernel


def within_range(x: Tensor, input_range: Any) -> Tensor:
    """Return inputs cut off at a range, a number or ``[1]``, in units of it; as they are where it is None."""
    return x if input_range is None else x.clamp(-input_range, input_range) / input_range


def own_inputs(x: Tensor, row: TileRow, linear_map: LinearMap) -> Tensor:
    """Return the channels that reach a tile row."""
    per_channel = size_product(linear_map.kernel_size)
    before, after = missing_columns(row, linear_map)
    first, n = row.columns.start // per_channel, (before + len(row.columns) + after) // per_channel
    dim, groups = linear_map.channel_dim, linear_map.groups
    if n * groups == x.shape[dim]:
        return x
    if groups == 1:
        return x.narrow(dim, first, n)
    return x.unflatten(dim, (groups, -1)).narrow(dim, first, n).flatten(dim - 1, dim)
