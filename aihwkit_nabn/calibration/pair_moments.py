"""Moments of chip and reference side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.regression import Correction, HalvedMoments

# Variance over squared mean that rounding can make of values that are all the same.
_ROUNDING = 1e-13
# Variance of an input mean over the inputs' mean square that rounding can make of inputs that cancel, as a layer
# normalization's do: read as a signal it would get a gain of millions.
_CANCELLED = 1e-10


@dataclass
class Pair:
    """One layer's moments so far.

    Args:
        digital: Of the reference's output.
        analog: Of the chip's output before alignment.
        joint: Of the two at the same positions of the same inputs, from a sample of positions; of the chip's input
            mean too, where it is gathered.
        common: Of the chip's input mean, or None where it is not gathered or the layer has none.
        inputs: Of the chip's inputs with both, where a correction is to be found.
    """

    digital: Moments
    analog: Moments
    joint: JointMoments
    common: Moments | None = None
    inputs: HalvedMoments | None = None

    @property
    def correlation(self) -> Tensor:
        """Of chip and reference: ``[channels]`` float64, between -1 and 1; 1 where either does not vary."""
        found = self.joint.correlations()
        constant = found[ANALOG, ANALOG] * found[DIGITAL, DIGITAL] == 0
        return found[ANALOG, DIGITAL].masked_fill(constant, 1.0)

    def merge(self, other: Pair) -> None:
        """Take in another pair's moments, in place."""
        self.digital.merge(other.digital)
        self.analog.merge(other.analog)
        self.joint.merge(other.joint)
        if other.common is not None:
            self.common = other.common.added_to(self.common)
        if other.inputs is not None:
            self.inputs = self.inputs or HalvedMoments(other.inputs.groups)
            self.inputs.merge(other.inputs)

    def corrected(self, correction: Correction) -> Pair:
        """Return the pair with a correction added to the chip's output."""
        assert self.inputs is not None
        return replace(self, analog=self.inputs.corrected(correction, self.analog))

    def aligned(self, scale: Tensor, offset: Tensor, gain: Tensor | None = None) -> Moments:
        """Return the moments of ``scale * x + offset + gain * m``, x the chip's output and m its input mean."""
        aligned = self.analog.affine(scale, offset)
        if gain is not None and self.common is not None:
            aligned = aligned.plus(gain, self.common, self.joint.correlations()[ANALOG, COMMON])
        return aligned


# What `JointMoments` of a layer are of, in this order.
ANALOG, DIGITAL, COMMON = range(3)


@dataclass
class JointMoments:
    """Joint second moments of a few signals over a sample of positions, per channel.

    Args:
        count: Positions.
        mean: ``[signals, channels]`` float64.
        scatter: ``[signals, signals, channels]`` float64, sums of products of deviations from the means.
        input_square: Largest mean square seen of the inputs whose mean is the last signal, or None.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    input_square: Tensor | None = None
    _correlations: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, n_channels: int, device: torch.device, n_signals: int = 2) -> JointMoments:
        """Return the moments of nothing."""
        mean = torch.zeros(n_signals, n_channels, dtype=torch.float64, device=device)
        return cls(0, mean, mean.new_zeros(n_signals, n_signals, n_channels))

    def add(self, *signals: Tensor) -> None:
        """Take in a ``[channels, positions]`` sample of each."""
        n = signals[0].shape[1]
        if n == 0:
            return
        x = torch.stack(signals).double()  # squares of small numbers leave the range of single precision
        mean = x.mean(2)
        x.sub_(mean.unsqueeze(2))
        self.merge(JointMoments(n, mean, (x.unsqueeze(0) * x.unsqueeze(1)).sum(3)))

    def merge(self, other: JointMoments) -> None:
        """Take in another sample's moments, in place."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        scatter = self.scatter + other.scatter
        self.scatter = scatter.addcmul_(delta.unsqueeze(0), delta.unsqueeze(1), value=self.count * other.count / total)
        self.mean = self.mean.add(delta, alpha=other.count / total)
        self.count = total
        if other.input_square is not None:
            self._raise_input_square(other.input_square)
        self._correlations = None

    def note_inputs(self, inputs: Tensor) -> None:
        """Take note of how large the inputs of a batch's first sample are: an order of magnitude is enough."""
        if inputs.numel():
            self._raise_input_square(inputs[:1].double().square().mean())

    def _raise_input_square(self, square: Tensor) -> None:
        self.input_square = square if self.input_square is None else torch.maximum(self.input_square, square)

    def correlations(self) -> Tensor:
        """Return ``[signals, signals, channels]``; 0 with a signal that changes by no more than its rounding."""
        if self._correlations is None:
            squares = self.scatter.diagonal().T
            constant = squares <= self.mean.square().mul_(_ROUNDING * self.count)
            if self.input_square is not None:
                constant[COMMON] |= squares[COMMON] <= self.input_square * (_CANCELLED * self.count)
            inverse = squares.rsqrt().masked_fill_(constant, 0.0)
            found = (self.scatter * inverse.unsqueeze(0)).mul_(inverse.unsqueeze(1))
            self._correlations = found.clamp_(-1.0, 1.0)
        return self._correlations
