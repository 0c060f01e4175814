"""Reading a tile's outputs: IR drop, read noise, output noise, analog-to-digital conversion, digital scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.simulator.product.blocks import as_rows, row_blocks, scratch_like
from aihwkit_nabn.simulator.product.converters import Converter
from aihwkit_nabn.simulator.product.numbers import NumberStream

#: Fills a tensor with normal numbers, or with uniform ones from -0.5 to 0.5.
Draw = Callable[[Tensor, bool], Tensor]


@dataclass(frozen=True, kw_only=True)
class Currents:
    """What of a product's physics is needed beside its result, each of the result's shape.

    Args:
        variance: Variance of the read noise, in ADC levels squared; None without such noise.
        total: Sum of the absolute currents, as IR drop counts them; None without IR drop.
        drop: The product with inputs weighted by their distance, in ADC levels.
    """

    variance: Tensor | None = None
    total: Tensor | None = None
    drop: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How a tile row's analog results become numbers.

    Args:
        adc: The converter. Results come in units of its levels.
        noise: Standard deviation of the output noise in ADC levels, one for all outputs or ``[out]``.
        gain: What a level is worth in the end, one for all outputs or ``[out]``.
        ir_drop: aihwkit's scale of the IR drop.
        clamp: Whether values beyond the ADC's bound are cut off.
    """

    adc: Converter
    noise: Tensor | float
    gain: Tensor | float
    ir_drop: float = 0.0
    clamp: bool = True

    @property
    def is_noisy(self) -> bool:
        """Whether every output gets a noise that does not depend on the input."""
        return isinstance(self.noise, Tensor) or self.noise > 0.0


def read_out(
    result: Tensor,
    readout: Readout,
    *,
    channel_dim: int,
    numbers: NumberStream,
    generator: torch.Generator | None = None,
    currents: Currents | None = None,
    total: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the digital values of analog results, added to the `total` of the tile rows before.

    Args:
        result: ``[..., out, *spatial]`` in ADC levels; overwritten.
        readout: What to do.
        channel_dim: Negative index of the outputs.
        numbers: Where random numbers are drawn from on the CPU.
        generator: Where they are drawn from on another device.
        currents: Needed with read noise or IR drop.
        total: Overwritten, and returned, if given; must have come from here.
        bias: ``[out]`` to start the total with.
    """
    currents = currents or Currents()
    y, in_columns = as_rows(result, channel_dim)
    n_channels = result.shape[channel_dim]
    repeats = 1 if in_columns else y.shape[0] // max(n_channels, 1)

    def along(values: Tensor | float) -> Tensor | float:
        if not isinstance(values, Tensor) or in_columns or repeats == 1:
            return values
        return values.expand(repeats, -1).reshape(-1)

    def rows_of(other: Tensor | None) -> Tensor | None:
        if other is None:
            return None
        if in_columns and channel_dim != -1:
            other = other.movedim(channel_dim, -1)
        return other.reshape(y.shape)

    parts = _Parts(
        y=y,
        total=rows_of(total),
        variance=rows_of(currents.variance),
        current=rows_of(currents.total),
        drop=rows_of(currents.drop),
        noise=along(readout.noise),
        gain=along(readout.gain),
        bias=None if bias is None else along(bias),
        in_columns=in_columns,
    )
    if parts.is_native(readout):
        parts.read_natively(readout, numbers)
    elif y.device.type != "cpu":

        def draw_there(target: Tensor, uniform: bool) -> Tensor:
            if uniform:
                return target.uniform_(-0.5, 0.5, generator=generator)
            return target.normal_(generator=generator)

        _read_rows(parts, readout, slice(0, y.shape[0]), draw_there, torch.empty_like(y))
    else:
        draws = readout.is_noisy or parts.variance is not None or readout.adc.stochastic
        scratch = None
        numbers.begin()

        def draw(target: Tensor, uniform: bool) -> Tensor:
            return numbers.uniform_(target) if uniform else numbers.normal_(target)

        for rows in row_blocks((y.shape[0], y.shape[1])):
            if scratch is None and draws:
                scratch = scratch_like(y[rows])
            _read_rows(parts, readout, rows, draw, scratch)
    out = y if parts.total is None else parts.total
    if in_columns and channel_dim != -1:
        moved = result.movedim(channel_dim, -1).shape
        return out.view(moved).movedim(-1, channel_dim)
    return out.view(result.shape)


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """All tensors of a readout in two dimensions; values per output lie along the rows, or along the columns."""

    y: Tensor
    total: Tensor | None
    variance: Tensor | None
    current: Tensor | None
    drop: Tensor | None
    noise: Tensor | float
    gain: Tensor | float
    bias: Tensor | float | None
    in_columns: bool

    def of(self, values: Tensor | float, rows: slice) -> Tensor | float:
        if not isinstance(values, Tensor) or self.in_columns:
            return values
        return values[rows].unsqueeze(1)

    def is_native(self, readout: Readout) -> bool:
        """Whether the compiled readout takes it."""
        adc = readout.adc
        return not (adc.stochastic or adc.asymmetry) and native.fits(
            *(self.y, self.total, self.variance, self.noise, self.gain, self.bias, self.current, self.drop)
        )

    def read_natively(self, readout: Readout, numbers: NumberStream) -> None:
        adc = readout.adc
        draws = readout.is_noisy or self.variance is not None
        job = native.Readout(
            y=self.y,
            total=self.total,
            variance=self.variance,
            current=self.current if self.drop is not None else None,
            drop=self.drop,
            ir_drop=readout.ir_drop,
            noise=self.noise,
            gain=self.gain,
            bias=0.0 if self.bias is None else self.bias,
            by_column=self.in_columns,
            rounds=adc.step > 0.0,
            bound=adc.bound / adc.unit if readout.clamp else math.inf,
        )
        native.read_out(job, numbers.normal_source(self.y.numel()) if draws else None)


def _read_rows(parts: _Parts, readout: Readout, rows: slice, draw: Draw, scratch: Tensor | None) -> None:
    adc, y = readout.adc, parts.y[rows]
    if parts.current is not None and parts.drop is not None:
        y.addcmul_(drop_factor(parts.current[rows]), parts.drop[rows], value=-readout.ir_drop)
    if adc.asymmetry:
        y.copy_(torch.where(y < 0, y * (1.0 - adc.asymmetry), y))
    random = y if scratch is None else scratch[: y.shape[0]]
    if parts.variance is not None:
        own = parts.of(parts.noise, rows)
        deviation = (parts.variance[rows] + own * own).sqrt_()
        y.addcmul_(draw(random, False), deviation)
    elif readout.is_noisy:
        _add_scaled(y, draw(random, False), parts.of(parts.noise, rows))
    if adc.step:
        if adc.stochastic:
            y.add_(draw(random, True))
        y.round_()
    if readout.clamp and math.isfinite(adc.bound):
        y.clamp_(-adc.bound / adc.unit, adc.bound / adc.unit)
    gain = parts.of(parts.gain, rows)
    if parts.total is None:
        if isinstance(gain, Tensor) or gain != 1.0:
            y.mul_(gain)
        if parts.bias is not None:
            y.add_(parts.of(parts.bias, rows))
    else:
        _add_scaled(parts.total[rows], y, gain)


def _add_scaled(target: Tensor, other: Tensor, factor: Tensor | float) -> None:
    if isinstance(factor, Tensor):
        target.addcmul_(other, factor)
    else:
        target.add_(other, alpha=factor)


def drop_factor(current: Tensor) -> Tensor:
    """Return how much of the far inputs' product is lost at a total current: aihwkit's polynomial."""
    return current * (current * (0.05 * current - 0.2) + 0.5)
