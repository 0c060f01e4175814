"""Exact population moments per channel, gathered batch by batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.errors import CalibrationError

# Longest run that is summed in the input's own precision; longer ones are cut and added in float64.
_RUN = 32_768
# Shortest run that is worth a vector of the compiled sums.
_COMPILED_RUN = 32
# Where mean^2 / variance exceeds this, the sum of squares cancels too much and is taken around the mean instead.
_CANCELLATION = 100.0
# Mean squares that single precision does not add up well any more.
_SMALLEST_SQUARE, _LARGEST_SQUARE = 1e-30, 1e30


@dataclass
class Moments:
    """Count, mean and sum of squared deviations per channel, over everything merged so far.

    Merging adds the between-batch term (Chan et al. 1979), so any split into batches gives the same.

    Args:
        count: Values per channel.
        mean: ``[channels]`` float64.
        m2: ``[channels]`` float64, sum of squared deviations from the mean.
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def empty(cls, n_channels: int, device: torch.device | None = None) -> Moments:
        """Return the moments of nothing."""
        zero = torch.zeros(n_channels, dtype=torch.float64, device=device)
        return cls(0, zero, zero.clone())

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor, channel_dim: int) -> Moments:
        """Return the moments of one tensor of any shape; integers and half precision are widened."""
        x = x.detach()
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        n_channels = x.shape[channel_dim]
        count = x.numel() // max(n_channels, 1)
        if count == 0:
            return cls.empty(n_channels, x.device)
        if native.is_recorded(x):  # nothing may depend on the values
            wide = x.double().movedim(channel_dim, 0).flatten(1)
            mean = wide.mean(1)
            return cls(count, mean, (wide - mean.unsqueeze(1)).square().sum(1))
        rows, dim = _rows(x, channel_dim)
        if dim == 2 and rows.shape[2] >= _COMPILED_RUN and native.fits(rows):
            mean, m2 = native.channel_moments(rows, _CANCELLATION)
        else:
            mean, m2 = _torch_moments(x, channel_dim, count)
        if x.dtype is torch.float32:
            _mend_squares_out_of_range(x, channel_dim, mean, m2)
        return cls(count, mean, m2)

    @property
    def var(self) -> Tensor:
        """Population variance (divided by the count), ``[channels]`` float64; zero where there is nothing."""
        return self.m2 / max(self.count, 1)

    def merge(self, other: Moments) -> Moments:
        """Take in another set's moments, in place; returns self."""
        if other.count == 0:
            return self
        if self.count == 0:
            self.count, self.mean, self.m2 = other.count, other.mean.to(self.mean), other.m2.to(self.m2)
            return self
        total = self.count + other.count
        delta = other.mean.to(self.mean.device) - self.mean
        self.mean = self.mean.add(delta, alpha=other.count / total)
        m2 = self.m2 + other.m2.to(self.m2.device)
        self.m2 = m2.addcmul_(delta, delta, value=self.count * other.count / total)
        self.count = total
        return self

    def added_to(self, total: Moments | None) -> Moments:
        """Return the total with these; begin one where there is none."""
        return (total or Moments.empty(len(self.mean), self.mean.device)).merge(self)

    def affine(self, scale: Tensor, offset: Tensor) -> Moments:
        """Return the moments of ``scale * x + offset``."""
        scale, offset = scale.double(), offset.double()
        return Moments(self.count, self.mean * scale + offset, self.m2 * scale * scale)

    def plus(self, gain: Tensor, other: Moments, correlation: Tensor) -> Moments:
        """Return the moments of ``x + gain * y``, where `other` are those of y at the same places."""
        gain = gain.double()
        product = gain * correlation * (self.m2 * other.m2).sqrt()
        m2 = self.m2 + gain * gain * other.m2 + 2.0 * product
        return Moments(self.count, self.mean + gain * other.mean, m2.clamp(min=0.0))

    @property
    def is_finite(self) -> bool:
        """Whether nothing that went in was NaN or infinite."""
        return math.isfinite(self.m2.sum().item())  # what is not finite is not at a finite distance from the mean

    def check_finite(self, what: str) -> Moments:
        """Return self.

        Raises:
            CalibrationError: `what`, which is named, holds NaN or infinite values.
        """
        if not self.is_finite:
            raise CalibrationError(f"{what} holds NaN or infinite values on the calibration set")
        return self


def _torch_moments(x: Tensor, channel_dim: int, count: int) -> tuple[Tensor, Tensor]:
    mean, m2 = _raw_moments(x, channel_dim, count)
    cancels = count * mean * mean > _CANCELLATION * m2
    if bool(cancels.any()):
        channels = cancels.nonzero().squeeze(1)
        centre = mean[channels].to(x.dtype)
        part = x.index_select(channel_dim, channels)
        part = part - centre.view(-1, *(1,) * (-_negative(channel_dim, x.dim()) - 1))
        # What the centre lost in rounding comes back as the mean of what is left.
        shift, m2[channels] = _raw_moments(part, channel_dim, count)
        mean[channels] = centre.double() + shift
    return mean, m2.clamp_(min=0.0)


def _mend_squares_out_of_range(x: Tensor, channel_dim: int, mean: Tensor, m2: Tensor) -> None:
    """Measure those channels again, in place, whose values are finite in single precision but their squares are not."""
    size = m2 / (x.numel() / len(m2)) + mean.square()
    lost = ((size < _SMALLEST_SQUARE) & (size > 0.0)) | ~torch.isfinite(size) | (size > _LARGEST_SQUARE)
    if bool(lost.any()):
        channels = lost.nonzero().squeeze(1)
        part = x.index_select(channel_dim, channels).double()
        mean[channels], m2[channels] = _torch_moments(part, channel_dim, part.numel() // len(channels))


def _raw_moments(x: Tensor, channel_dim: int, count: int) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations from plain sums, which cancel where the mean is large."""
    rows, dim = _rows(x, channel_dim)
    mean = _summed(rows, dim, lambda part: part.sum(dim).double()) / count
    squares = _summed(rows, dim, lambda part: torch.linalg.vector_norm(part, dim=dim).double().square())
    return mean, torch.addcmul(squares, mean, mean, value=-count)


def _negative(dim: int, rank: int) -> int:
    return dim if dim < 0 else dim - rank


def _rows(x: Tensor, channel_dim: int) -> tuple[Tensor, int]:
    """Return a view with the channels in dimension 1 or last, and the dimension to reduce first."""
    channel_dim = _negative(channel_dim, x.dim())
    if channel_dim == -1:
        return x.reshape(-1, x.shape[-1]), 0
    channels_last = x.movedim(channel_dim, -1)
    if channels_last.is_contiguous() and not x.is_contiguous():
        return channels_last.reshape(-1, channels_last.shape[-1]), 0
    n_channels = x.shape[channel_dim]
    return x.reshape(x.shape[:channel_dim].numel(), n_channels, -1), 2


def _summed(rows: Tensor, dim: int, sum_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `sum_of` makes of runs along a dimension, added up over these and over the batch."""
    total = functools.reduce(torch.add, map(sum_of, rows.split(_RUN, dim)))
    return total if dim == 0 else total.sum(0)
