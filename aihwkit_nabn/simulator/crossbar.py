"""The product of a layer's tiles without unfolding: one convolution per tile row, between converters.

Where every input vector is scaled alike, converting the feature map once is the same as converting each of its windows,
and the partial sums of a tile row are one convolution of the converted map. So DAC, convolution, read noise, IR drop
and ADC act in the layer's own layout, and no window is ever laid out in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from aihwkit.simulator.parameters.enums import BoundManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.simulator.blocks import as_rows, row_blocks
from aihwkit_nabn.simulator.converters import Converter, input_converter, output_converter, static_input_scale
from aihwkit_nabn.simulator.linear_map import LinearMap, size_product
from aihwkit_nabn.simulator.readout import Currents, Readout, drop_factor, read_out


@dataclass(frozen=True, kw_only=True)
class TileRow:
    """The tiles that share a part of a layer's inputs, side by side.

    Args:
        columns: Which columns of the layer's matrix they hold.
        weight: ``[out, columns]`` in the tiles' units.
        scale: What their results are multiplied with in the end, one factor or ``[out]``.
        input_range: Largest input, and what inputs are divided by; None without one.
        noise: ``[out]`` standard deviation of each output's noise where it differs; None: the settings' own.
    """

    columns: range
    weight: Tensor
    scale: Tensor | float
    input_range: float | None
    noise: Tensor | None


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
    """Return what the tile rows make of `x`, summed; settings must not depend on the vector.

    Args:
        x: ``[..., channels, *spatial]``.
        rows: The layer's tile rows.
        io: Their settings.
        linear_map: How the matrix meets the input.
        bias: ``[out]``, digital.
        seed: Gives a number to start random numbers from, for each tile row anew.
        generator: Where random numbers are drawn from on a device other than the CPU.
    """
    total: Tensor | None = None
    for row in rows:
        result, currents = analog_results(x, row, io, linear_map)
        total = read_out(
            result,
            readout_of(row, io),
            channel_dim=linear_map.channel_dim,
            seed=seed,
            generator=generator,
            currents=currents,
            total=total,
            bias=bias,
        )
    assert total is not None
    return total


def readout_of(row: TileRow, io: IOParameters, clamp: bool = True) -> Readout:
    """Return how the results of `analog_results` are read out."""
    adc = output_converter(io)
    noise: Tensor | float = row.noise / adc.unit if row.noise is not None else io.out_noise / adc.unit
    if io.is_perfect:
        noise = 0.0
    gain = adc.unit * (row.input_range or 1.0) * (static_input_scale(io) or 1.0)
    gain *= 1.0 if io.is_perfect else io.out_scale
    return Readout(adc=adc, noise=noise, gain=row.scale * gain, ir_drop=io.ir_drop, clamp=clamp)


def analog_results(x: Tensor, row: TileRow, io: IOParameters, linear_map: LinearMap) -> tuple[Tensor, Currents]:
    """Return a tile row's results for `x` in ADC levels, before anything is read, and the currents behind them.

    Where noise management depends on the vector, `x` must have been scaled already.
    """
    dac, adc = input_converter(io), output_converter(io)
    part, matrix = _own_inputs(x, row, linear_map)
    levels = to_levels(part, dac, row.input_range, static_input_scale(io) or 1.0, linear_map.channel_dim)
    if not io.is_perfect and io.inp_noise > 0.0:
        levels = levels.add(torch.randn_like(levels), alpha=io.inp_noise / dac.unit)
    if dac.asymmetry:
        levels = torch.where(levels < 0, levels * (1.0 - dac.asymmetry), levels)
    unit = dac.unit / adc.unit
    result = linear_map.apply(levels, matrix if unit == 1.0 else matrix * unit, None)
    currents = Currents()
    if not io.is_perfect:
        currents = _currents(levels, matrix, row, io, linear_map, dac.unit, adc.unit)
    return result, currents


def _currents(
    levels: Tensor,
    matrix: Tensor,
    row: TileRow,
    io: IOParameters,
    linear_map: LinearMap,
    dac_unit: float,
    adc_unit: float,
) -> Currents:
    variance = total = drop = None
    if io.w_noise > 0.0 and io.w_noise_type != WeightNoiseType.NONE:
        # aihwkit: sqrt(sum |w| x^2) for PCM, the norm of x for a constant deviation of every weight.
        weight = matrix.abs() if io.w_noise_type == WeightNoiseType.PCM_READ else torch.ones_like(matrix)
        weight = _only_own(weight, row, linear_map)
        variance = linear_map.apply(levels * levels, weight * (io.w_noise * dac_unit / adc_unit) ** 2, None)
        variance.clamp_(min=0.0)  # an algorithm with rounding errors may have summed it
    if io.ir_drop > 0.0:
        n = len(row.columns)
        total = linear_map.apply(levels.abs(), matrix.abs() * (dac_unit * n / io.ir_drop_g_ratio), None)
        near = 1.0 - torch.arange(n, dtype=matrix.dtype, device=matrix.device) / n
        before, after = _padding(row, linear_map)
        drop = linear_map.apply(
            levels, matrix * (F.pad(1.0 - near * near, (before, after)) * (dac_unit / adc_unit)), None
        )
    return Currents(variance=variance, total=total, drop=drop)


def _padding(row: TileRow, linear_map: LinearMap) -> tuple[int, int]:
    """How many columns a tile row lacks of its first and of its last channel."""
    per_channel = size_product(linear_map.kernel_size)
    return row.columns.start % per_channel, -row.columns.stop % per_channel


def _only_own(weight: Tensor, row: TileRow, linear_map: LinearMap) -> Tensor:
    before, after = _padding(row, linear_map)
    return weight if not before and not after else F.pad(weight[:, before : weight.shape[1] - after], (before, after))


def _own_inputs(x: Tensor, row: TileRow, linear_map: LinearMap) -> tuple[Tensor, Tensor]:
    """Return the channels that reach a tile row, and its matrix over all columns of those channels."""
    per_channel = size_product(linear_map.kernel_size)
    before, after = _padding(row, linear_map)
    matrix = F.pad(row.weight, (before, after)) if before or after else row.weight
    first, n = row.columns.start // per_channel, matrix.shape[1] // per_channel
    dim, groups = linear_map.channel_dim, linear_map.groups
    if groups == 1:
        return (x if n == x.shape[dim] else x.narrow(dim, first, n)), matrix
    if n * groups == x.shape[dim]:
        return x, matrix
    grouped = x.unflatten(dim, (groups, -1)).narrow(dim, first, n)
    return grouped.flatten(dim - 1, dim), matrix


def to_levels(x: Tensor, dac: Converter, input_range: float | None, scale: float, channel_dim: int) -> Tensor:
    """Return inputs as levels of the DAC, a new tensor.

    Args:
        x: ``[..., channels, *spatial]``, in any layout.
        dac: The converter.
        input_range: Inputs beyond it are cut off, the rest divided by it.
        scale: What noise management divides by.
        channel_dim: Negative index of the channels.
    """
    if input_range is None and scale == 1.0 and not dac.step and not math.isfinite(dac.bound):
        return x

    # Cutting off at the input range first is the same where the converter's bound lies there.
    cuts = input_range is not None and (scale != 1.0 or dac.bound != 1.0)

    def convert(source: Tensor, target: Tensor) -> None:
        if input_range is None:
            target.copy_(source)
        elif cuts:
            torch.clamp(source, -input_range, input_range, out=target).div_(input_range)
        else:
            torch.div(source, input_range, out=target)
        if scale != 1.0:
            target.mul_(1.0 / scale)
        dac.levels_(target)

    out = torch.empty_like(x, memory_format=_dense_format(x, channel_dim))
    if x.device.type != "cpu" or dac.stochastic:
        convert(x, out)
        return out
    source, target = _outer_rows(x, channel_dim), _outer_rows(out, channel_dim)
    for rows in row_blocks((source.shape[0], source.shape[1])):
        convert(source[rows], target[rows])
    return out


def _dense_format(x: Tensor, channel_dim: int) -> torch.memory_format:
    in_columns = channel_dim != -1 and x.stride(channel_dim) == 1 and x.shape[channel_dim] > 1
    if in_columns and x.dim() == 4:
        return torch.channels_last
    return torch.channels_last_3d if in_columns and x.dim() == 5 else torch.contiguous_format


def _outer_rows(x: Tensor, channel_dim: int) -> Tensor:
    """As `as_rows`, but a sample's channels all in one row: some channels of a larger tensor stay a view so."""
    rows, in_columns = (x, False) if x.stride(channel_dim) != 1 else as_rows(x, channel_dim)
    return rows if in_columns else x.flatten(channel_dim).reshape(-1, x.shape[channel_dim:].numel())


def straight_through_product(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, *, bias: Tensor | None
) -> Tensor:
    """Return the same as `product_of_rows`, with gradients that pass the converters; noise is a constant to them.

    Random numbers come from torch's global generator.
    """
    dac, adc = input_converter(io), output_converter(io)
    total: Tensor | None = None
    for row in rows:
        part, matrix = _own_inputs(x, row, linear_map)
        if row.input_range is not None:
            part = part.clamp(-row.input_range, row.input_range) / row.input_range
        scale = static_input_scale(io) or 1.0
        values = dac.straight_through(part / scale if scale != 1.0 else part)
        if not io.is_perfect and io.inp_noise > 0.0:
            values = values + io.inp_noise * torch.randn_like(values)
        if dac.asymmetry:
            values = torch.where(values < 0, values * (1.0 - dac.asymmetry), values)
        result = linear_map.apply(values, matrix, None)
        shape = [-1, *[1] * (-linear_map.channel_dim - 1)]
        if not io.is_perfect:
            with torch.no_grad():
                currents = _currents(values.detach(), matrix.detach(), row, io, linear_map, 1.0, 1.0)
                noise: Tensor | float = io.out_noise if row.noise is None else row.noise.view(shape)
                loss, read_noise = torch.zeros_like(result), torch.zeros_like(result)
                if currents.total is not None and currents.drop is not None:
                    loss = io.ir_drop * drop_factor(currents.total) * currents.drop
                if currents.variance is not None:
                    read_noise = torch.randn_like(result) * (currents.variance + noise * noise).sqrt()
                elif isinstance(noise, Tensor) or noise > 0.0:
                    read_noise = torch.randn_like(result) * noise
            result = result - loss
            if adc.asymmetry:
                result = torch.where(result < 0, result * (1.0 - adc.asymmetry), result)
            result = result + read_noise
        result = adc.straight_through(result)
        gain = row.scale * ((row.input_range or 1.0) * scale * (1.0 if io.is_perfect else io.out_scale))
        result = result * (gain.view(shape) if isinstance(gain, Tensor) and gain.numel() > 1 else gain)
        total = result if total is None else total + result
    assert total is not None
    return total if bias is None else total + bias.view([-1, *[1] * (-linear_map.channel_dim - 1)])
