"""Reduced-rank regression of a layer's errors on its inputs, from second moments."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.nn.alignment import LayerInput, add_correction, add_mean

# Ridges tried, in parts of the least one.
_RIDGES = (1.0, 10.0, 100.0)
# Smallest square of a singular value that is told from 0, in parts of the largest.
_LEAST_VALUE = 1e-12
# Which of inputs, tiles' and digital outputs each part of the scatter multiplies.
_FACTORS = ((0, 0), (1, 0), (2, 0), (1, 1), (2, 2), (1, 2))


@dataclass(frozen=True)
class Correction:
    """What is added to a layer's output before it is aligned: terms of its inputs.

    Args:
        directions: ``[rank, in_channels]`` or None.
        mixing: ``[channels, rank]`` or None.
        input_gain: Gain of the input mean ``[channels]`` or None.
    """

    directions: Tensor | None = None
    mixing: Tensor | None = None
    input_gain: Tensor | None = None

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return mixing and directions, float64."""
        assert self.directions is not None and self.mixing is not None
        return self.mixing.double(), self.directions.double()

    def added(self, output: Tensor, given: LayerInput, channel_dim: int) -> Tensor:
        """Return an output with the terms, in its place."""
        if self.input_gain is not None:
            output = add_mean(output, self.input_gain, given.mean().to(output.dtype), channel_dim, True)
        if self.directions is not None and self.mixing is not None:
            output = add_correction(output, given, self.directions, self.mixing, overwrite=True)
        return output

    def scaled(self, scale: Tensor) -> dict[str, Tensor]:
        """Return the parts of an alignment that scales the sum by `scale`."""
        found = {}
        if self.input_gain is not None:
            found["input_gain"] = self.input_gain * scale.to(self.input_gain)
        if self.directions is not None and self.mixing is not None:
            found["directions"] = self.directions
            found["mixing"] = self.mixing * scale.to(self.mixing).unsqueeze(1)
        return found


@dataclass
class InputMoments:
    """Second moments of one layer's inputs and of what tiles and digital layer make of them, over sampled positions.

    Args:
        groups: Of the layer. With more than one, an output's only input is the mean of its group's.
        count: Positions in the sample.
        mean: Of inputs, tiles' outputs and digital outputs.
        scatter: Sums of products of deviations: inputs with inputs, tiles' and digital outputs with inputs; then,
            channel by channel, the squares of the tiles' outputs and of the digital ones, and the products of the two.
    """

    groups: int
    count: int = 0
    mean: tuple[Tensor, ...] = ()
    scatter: tuple[Tensor, ...] = ()

    def take_in(self, inputs: Tensor, analog: Tensor, digital: Tensor) -> None:
        """Take in samples ``[channels, positions]``."""
        n = digital.shape[1]
        if n == 0:
            return
        # As samples come: one position's channels lie side by side.
        parts = [part.T.double() for part in (per_output(inputs, len(digital), self.groups), analog, digital)]
        self.merge(InputMoments(self.groups, n, *self._measured(parts)))

    def merge(self, other: InputMoments) -> None:
        """Take in another sample's moments, in place."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean = other.count, other.mean
            self.scatter = tuple(part.clone() for part in other.scatter)
            return
        total = self.count + other.count
        deltas = [new - old for new, old in zip(other.mean, self.mean, strict=True)]
        weight = self.count * other.count / total
        pairs = [(deltas[i], deltas[j]) for i, j in _FACTORS]
        for old, new, (left, right) in zip(self.scatter, other.scatter, pairs, strict=True):
            old.add_(new)
            if old.dim() == 2:
                old.addr_(left, right, alpha=weight)
            else:
                old.addcmul_(left, right, value=weight)
        self.mean = tuple(old + delta * (other.count / total) for old, delta in zip(self.mean, deltas, strict=True))
        self.count = total

    @property
    def is_finite(self) -> bool:
        """Whether nothing that was taken in was NaN or infinite."""
        return all(bool(torch.isfinite(part).all()) for part in self.scatter)

    @property
    def correlation(self) -> float:
        """Of tiles and digital layer, all channels together; 0 where either does not vary."""
        *_, analog, digital, both = self.scatter
        size = float(analog.sum() * digital.sum()) ** 0.5
        return float(both.sum()) / size if size > 0 else 0.0

    def change(self, correction: Correction) -> Tensor:
        """Return what a correction adds to the sum of the tiles' outputs' squares: ``[channels]``."""
        inputs, with_analog, *_ = self.scatter
        if correction.input_gain is not None:
            gain = correction.input_gain.double()
            return 2 * gain * with_analog + gain.square() * inputs
        mixing, directions = correction.factors()
        squares = mixing @ (directions @ inputs @ directions.T)
        return ((2 * with_analog @ directions.T + squares) * mixing).sum(1)

    def left_over(self, correction: Correction) -> float:
        """Return the sum of the errors' squares with a correction, less that without it."""
        with_digital = self.scatter[2]
        added = self.change(correction).sum()
        if correction.input_gain is not None:
            return float(added - 2 * (correction.input_gain.double() * with_digital).sum())
        mixing, directions = correction.factors()
        return float(added - 2 * (mixing * (with_digital @ directions.T)).sum())

    def _measured(self, parts: list[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return means and scatter of ``[positions, channels]``."""
        means = tuple(part.mean(0) for part in parts)
        inputs, analog, digital = (part - mean for part, mean in zip(parts, means, strict=True))
        if self.groups == 1:
            with_inputs = [part.T @ inputs for part in (inputs, analog, digital)]
        else:
            with_inputs = [(part * inputs).sum(0) for part in (inputs, analog, digital)]
        return means, (*with_inputs, analog.square().sum(0), digital.square().sum(0), (analog * digital).sum(0))


@dataclass
class HalvedMoments:
    """The moments of two halves of the samples, one to check on what the other says.

    Args:
        groups: Of the layer.
        everywhere: Count and mean of the inputs at all positions.
    """

    groups: int
    everywhere: Moments | None = None
    halves: tuple[InputMoments, InputMoments] = field(init=False)
    _whole: InputMoments | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.halves = InputMoments(self.groups), InputMoments(self.groups)

    def take_in(self, inputs: Tensor, analog: Tensor, digital: Tensor, is_second: Tensor) -> None:
        """Take in samples ``[channels, positions]``; `is_second` says of which half each position is."""
        self._whole = None
        for half, chosen in zip(self.halves, (~is_second, is_second), strict=True):
            half.take_in(*(part.T[chosen].T for part in (inputs, analog, digital)))

    def note_inputs(self, inputs: Tensor, channel_dim: int, channels: int) -> None:
        """Take in all of the inputs that samples are taken of, for their mean."""
        now = Moments.of(inputs, channel_dim)
        mean = per_output(now.mean, channels, self.groups)
        self.everywhere = Moments(now.count, mean, torch.zeros_like(mean)).added_to(self.everywhere)

    def merge(self, other: HalvedMoments) -> None:
        """Take in others, in place."""
        self._whole = None
        for mine, theirs in zip(self.halves, other.halves, strict=True):
            mine.merge(theirs)
        if other.everywhere is not None:
            self.everywhere = other.everywhere.added_to(self.everywhere)

    def whole(self) -> InputMoments:
        """Return the moments of both, which are not to be added to."""
        if self._whole is None:
            self._whole = InputMoments(self.groups)
            for half in self.halves:
                self._whole.merge(half)
        return self._whole

    def corrected(self, correction: Correction, analog: Moments) -> Moments:
        """Return the moments of the tiles' outputs with a correction, from those without it at all positions."""
        whole = self.whole()
        if whole.count == 0 or self.everywhere is None:
            return analog
        mean, squares = self.everywhere.mean, whole.scatter[3]
        if correction.input_gain is None:
            mixing, directions = correction.factors()
            shift = mixing @ (directions @ mean)
        else:
            shift = correction.input_gain.double() * mean
        ratio = (1.0 + whole.change(correction) / squares).nan_to_num(1.0, posinf=1.0, neginf=1.0).clamp(min=0.0)
        return Moments(analog.count, analog.mean + shift, analog.m2 * ratio)


def per_output(inputs: Tensor, channels: int, groups: int) -> Tensor:
    """Return the input of each output where there are groups, ``[channels, ...]``; else the inputs."""
    repeats = channels // len(inputs)
    return inputs if groups == 1 or repeats == 1 else inputs.repeat_interleave(repeats, 0)


@dataclass(frozen=True)
class Solved:
    """The regression of a layer's error on its inputs.

    Args:
        gains: Shares of the layer's signal that each rank takes off its error, falling.
        full: The correction of full rank; an input gain counts as one rank.
    """

    gains: list[float]
    full: Correction

    @property
    def numbers_of_a_rank(self) -> int:
        """Numbers that one rank stores, and multiplications that it takes for every output position."""
        if self.full.input_gain is not None:
            return len(self.full.input_gain)
        assert self.full.mixing is not None and self.full.directions is not None
        return self.full.mixing.shape[0] + self.full.directions.shape[1]

    def cut(self, rank: int) -> Correction | None:
        """Return the best correction of a rank; None for none."""
        if rank == 0 or self.full.input_gain is not None:
            return self.full if rank else None
        assert self.full.mixing is not None and self.full.directions is not None
        return Correction(directions=self.full.directions[:rank].clone(), mixing=self.full.mixing[:, :rank].clone())


def solve(found: InputMoments, ridge: float) -> Solved | None:
    """Return the ridge regression of the digital outputs minus the tiles' on the inputs, rank by rank.

    The best approximation of rank r of its predictions is its first r terms (Izenman 1975). The ridge is in parts of
    the inputs' mean variance. None where nothing varies.
    """
    if found.count == 0:
        return None
    inputs, with_analog, with_digital, _, squares, _ = found.scatter
    cross, total = with_digital - with_analog, float(squares.sum())
    if not total > 0:
        return None
    if found.groups > 1:
        gain = _gain(found, ridge)
        return Solved([float((gain * cross).sum()) / total], Correction(input_gain=gain))
    factor = _factor(inputs, ridge)
    if factor is None:
        return None
    # Right-hand sides as rows: whitened = cross L^-T.
    whitened = torch.linalg.solve_triangular(factor, cross.T, upper=False).T
    values, left = _leading(whitened)
    directions = torch.linalg.solve_triangular(factor.T, whitened.T @ left, upper=True).T
    return Solved((values / total).tolist(), Correction(directions=directions, mixing=left))


def _leading(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares of a matrix' singular values, falling, and its left vectors as columns; none for the zeros.

    By way of its square, which takes a fraction of the time. That loses small singular values only.
    """
    rows, columns = matrix.shape
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if rows <= columns else matrix.T @ matrix)
    kept = values > _LEAST_VALUE * values[-1]
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    return values, vectors if rows <= columns else (matrix @ vectors) / values.sqrt()


def solve_checked(found: HalvedMoments, rank: int, ridge: float, own: Correction) -> Correction:
    """Return the correction of a rank that each half of the samples says is best for the other.

    The error on a chip's own inputs is in part what earlier layers left over, of which the inputs tell little: where
    they are many and the samples few, a regression makes it up. So ridges from `ridge` on are tried, each half solving
    for the other; where none takes off more than the correction of the layer's own error, it is that.

    Args:
        found: A layer's moments on the chip's own inputs.
        rank: Of the correction.
        ridge: Least one, in parts of the inputs' mean variance.
        own: The correction of the layer's own error.
    """
    whole = found.whole()
    start = None if 0 in (half.count for half in found.halves) else solve(whole, ridge)
    if start is None:
        return own
    mixing = None if start.full.mixing is None else start.full.mixing[:, :rank]
    best, best_ridge = whole.left_over(own), 0.0
    first, second = found.halves
    for tried in (ridge * step for step in _RIDGES):
        left_over = 0.0
        for half, other in ((first, second), (second, first)):
            correction = _with_mixing(half, mixing, tried)
            left_over += math.inf if correction is None else other.left_over(correction)
        if left_over < best:
            best, best_ridge = left_over, tried
    return (_with_mixing(whole, mixing, best_ridge) if best_ridge else own) or own


def _with_mixing(found: InputMoments, mixing: Tensor | None, ridge: float) -> Correction | None:
    """Return the ridge regression whose predictions lie along given directions of the outputs."""
    if mixing is None:
        return Correction(input_gain=_gain(found, ridge))
    inputs, with_analog, with_digital, *_ = found.scatter
    factor = _factor(inputs, ridge)
    if factor is None:
        return None
    cross = mixing.T @ (with_digital - with_analog)
    return Correction(directions=torch.cholesky_solve(cross.T, factor).T, mixing=mixing.clone())


def _gain(found: InputMoments, ridge: float) -> Tensor:
    inputs, with_analog, with_digital, *_ = found.scatter
    return ((with_digital - with_analog) / (inputs * (1.0 + ridge))).nan_to_num(0.0, posinf=0.0, neginf=0.0)


def _factor(inputs: Tensor, ridge: float) -> Tensor | None:
    """Return the Cholesky factor of the inputs' second moments with a ridge; None where they do not vary."""
    size = float(inputs.diagonal().mean())
    if not size > 0:
        return None
    ones = torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    factor: Tensor = torch.linalg.cholesky(inputs + ridge * size * ones)
    return factor
