"""Inputs on their way to a tile: digital-to-analog conversion, noise, asymmetry, in the layout they came in."""

from __future__ import annotations

import math

import torch
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.simulator.product.blocks import as_rows, row_blocks
from aihwkit_nabn.simulator.product.physics.asymmetry import asymmetric
from aihwkit_nabn.simulator.product.physics.converters import Converter


def to_levels(x: Tensor, dac: Converter, input_range: float | None, scale: float, channel_dim: int) -> Tensor:
    """Return inputs ``[..., channels, *spatial]``, in any layout, as levels of the DAC, a new tensor.

    Inputs beyond the range are cut off, the rest divided by it; noise management divides by `scale`.
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
    if native.fits(target, rows=source):
        limit = dac.bound / dac.unit
        native.to_levels(source, target, input_range=input_range, cuts=cuts, scale=scale, step=dac.step, bound=limit)
        return out
    for rows in row_blocks((source.shape[0], source.shape[1])):
        convert(source[rows], target[rows])
    return out


def disturbed_inputs(x: Tensor, dac: Converter, io: IOParameters, unit: float) -> Tensor:
    """Return converted inputs, in so many times their unit, with the noise and the asymmetry of the settings."""
    if not io.is_perfect and io.inp_noise > 0.0:
        x = x.add(torch.randn_like(x), alpha=io.inp_noise / unit)
    return asymmetric(x, dac.asymmetry) if dac.asymmetry else x


def _dense_format(x: Tensor, channel_dim: int) -> torch.memory_format:
    in_columns = channel_dim != -1 and x.stride(channel_dim) == 1 and x.shape[channel_dim] > 1
    if in_columns and x.dim() == 4:
        return torch.channels_last
    return torch.channels_last_3d if in_columns and x.dim() == 5 else torch.contiguous_format


def _outer_rows(x: Tensor, channel_dim: int) -> Tensor:
    """As `as_rows`, but a sample's channels all in one row: some channels of a larger tensor stay a view so."""
    rows, in_columns = (x, False) if x.stride(channel_dim) != 1 else as_rows(x, channel_dim)
    return rows if in_columns else x.flatten(channel_dim).reshape(-1, x.shape[channel_dim:].numel())
