"""Chip and reference side by side: each analog layer's output moments next to the reference's on the same inputs."""

from __future__ import annotations

import functools
import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import InputMean, OutputAlignment, align
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers

# Positions per channel, and values in all, of a call whose reference values are kept until the chip's come, for the
# correlation.
_PROBE = 1024
_PROBE_VALUES = 2**16
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
    """

    digital: Moments
    analog: Moments
    joint: JointMoments
    common: Moments | None = None

    @property
    def correlation(self) -> Tensor:
        """Of chip and reference: ``[channels]`` float64, between -1 and 1; 1 where either does not vary."""
        found = self.joint.correlations()
        constant = found[ANALOG, ANALOG] * found[DIGITAL, DIGITAL] == 0
        return found[ANALOG, DIGITAL].masked_fill(constant, 1.0)

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
        """Take in a ``[channels, positions]`` sample of each, few enough positions for sums in their own precision."""
        n = signals[0].shape[1]
        if n == 0:
            return
        x = torch.stack([s if s.dtype is torch.float64 else s.float() for s in signals])
        mean = x.mean(2, keepdim=True)
        x.sub_(mean)
        scatter = (x.unsqueeze(0) * x.unsqueeze(1)).sum(3).double()
        total = self.count + n
        delta = mean.squeeze(2).double() - self.mean
        self.scatter = scatter.add_(self.scatter).addcmul_(
            delta.unsqueeze(0), delta.unsqueeze(1), value=self.count * n / total
        )
        self.mean = self.mean.add(delta, alpha=n / total)
        self.count = total
        self._correlations = None

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


# Scale and offset, and the input gain where there is one; each [channels].
PairRule = Callable[[Pair], "tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]"]


@dataclass
class _LayerObserver:
    """Aligns one layer's output with the estimate so far, this call included, before it goes on to the next layer."""

    name: str
    alignment: OutputAlignment
    rule: PairRule
    pair: Pair
    wants_joint: bool
    wants_common: bool
    pending: deque[tuple[Moments, Tensor | None]] = field(default_factory=deque)
    in_reference: bool = False  # whether it was called there, on whatever

    def note_reference(self, output: Tensor) -> None:
        self.in_reference = True
        moments = Moments.of(output, self.alignment.channel_dim)
        moments.check_finite(f"layer {self.name!r} of the reference")
        probe = self._channels(output[_grid(output.shape, self.alignment.channel_dim)]) if self.wants_joint else None
        self.pending.append((moments, probe))

    def __call__(self, output: Tensor, input_mean: InputMean | None) -> Tensor:
        now = Moments.of(output, self.alignment.channel_dim)
        now.check_finite(f"layer {self.name!r}")
        self.pair.analog.merge(now)
        mean = input_mean() if input_mean is not None and self.wants_common else None
        if mean is not None and input_mean is not None:
            self._add_common(mean)
            self._note_inputs(input_mean.inputs)
        if self.pending:
            digital, probe = self.pending.popleft()
            self.pair.digital.merge(digital)
            if probe is not None:
                self._compare(probe, output, mean)
        if now.count == 0 or self.pair.digital.count == 0:
            return output
        scale, offset, *gains = self.rule(self.pair)
        channel_dim = self.alignment.channel_dim
        return align(output, scale, offset, *gains, mean=mean, channel_dim=channel_dim, overwrite=True)

    def _add_common(self, mean: Tensor) -> None:
        """Take in the input mean's moments, one per channel of the output."""
        now = Moments.of(mean, self.alignment.channel_dim)
        now.check_finite(f"the input of layer {self.name!r}")
        repeats = self.alignment.n_channels // mean.shape[self.alignment.channel_dim]
        now = Moments(now.count, now.mean.repeat_interleave(repeats), now.m2.repeat_interleave(repeats))
        if self.pair.common is None:
            self.pair.common = Moments.empty(self.alignment.n_channels, mean.device)
        self.pair.common.merge(now)

    def _note_inputs(self, inputs: Tensor) -> None:
        """Take note of how large the inputs are, from one sample: an order of magnitude is enough."""
        joint = self.pair.joint
        if inputs.numel():
            square = inputs[:1].float().square().mean()
            joint.input_square = square if joint.input_square is None else torch.maximum(joint.input_square, square)

    def _compare(self, probe: Tensor, output: Tensor, mean: Tensor | None) -> None:
        grid = _grid(output.shape, self.alignment.channel_dim)
        signals = [self._channels(output[grid]), probe]
        if signals[0].shape != probe.shape:  # a data-dependent number of regions gives no pairs
            return
        if mean is not None:
            part = self._channels(mean[grid])
            signals.append(part.repeat_interleave(probe.shape[0] // part.shape[0], 0).to(probe.dtype))
        elif self.wants_common:
            signals.append(torch.zeros_like(probe))
        self.pair.joint.add(*signals)

    def _channels(self, part: Tensor) -> Tensor:
        """``[channels, positions]`` of a part of an output."""
        return part.movedim(self.alignment.channel_dim, 0).reshape(part.shape[self.alignment.channel_dim], -1)

    def end_batch(self) -> None:
        while self.pending:
            self.pair.digital.merge(self.pending.popleft()[0])


@functools.lru_cache(1024)
def _grid(shape: torch.Size, channel_dim: int) -> tuple[slice, ...]:
    """Return a coarse grid of positions of an output."""
    channels = len(shape) + channel_dim
    n_channels = max(shape[channels], 1)
    positions = shape.numel() // n_channels
    wanted = min(_PROBE, max(_PROBE_VALUES // n_channels, 128))
    grid = [slice(None)] * len(shape)
    # Neighbouring positions say nearly the same, so the grid is thinned along the longest dimensions first.
    lengths = {d: length for d, length in enumerate(shape) if d != channels}
    steps = dict.fromkeys(lengths, 1)
    while positions > wanted:
        longest = max(lengths, key=lambda d: lengths[d] / steps[d])
        steps[longest] += 1
        positions = math.prod(-(-length // steps[d]) for d, length in lengths.items())
    for d, step in steps.items():
        grid[d] = slice(step // 2, None, step)
    return tuple(grid)


@torch.no_grad()
def align_with_reference(
    session: CalibrationSession, rule: PairRule, *, wants_joint: bool = False, wants_common: bool = False
) -> dict[str, Pair]:
    """Run reference and chip over the batches, once each, and align every analog layer's output with the reference's.

    Batch by batch the reference goes first; then the chip, each layer's output corrected by what `rule` makes of the
    moments of all calls so far before it goes on, so that every layer is measured behind corrected ones. Both sides'
    moments cover the same samples at every step, so what is special about them cancels.

    Args:
        session: The calibration at hand.
        rule: Called with a `Pair`, returns scale and offset, and perhaps an input gain, each ``[channels]``.
        wants_joint: Also gather the correlation between chip and reference.
        wants_common: Also gather the moments of the layers' input means, and theirs with both.

    Returns:
        The pairs by layer name; the alignments are set and the shifts noted in the session.

    Raises:
        CalibrationError: no analog layer ran, or a layer of the reference never did while the chip's did.
    """
    reference_layers = session.reference_layers()
    observers = {
        name: _observer(name, session, rule, wants_joint or wants_common, wants_common) for name in reference_layers
    }

    reads = _weight_reads(session)

    def note(name: str, output: Any) -> None:
        observers[name].note_reference(output)

    try:
        with session.recording(reference_layers, note):
            for batch in session.batches():
                session.run_reference(batch)
                for name, observer in observers.items():
                    session.alignments[name].observer = observer
                session.run_analog(batch)
                for observer in observers.values():
                    observer.end_batch()
    finally:
        for alignment in session.alignments.values():
            alignment.observer = None
    read = [name for name, count in _weight_reads(session).items() if count > reads[name]]
    _warn_of_bypassed([name for name in read if observers[name].pair.analog.count == 0])
    pairs, one_sided = {}, []
    for name, observer in observers.items():
        pair = observer.pair
        if pair.analog.count == 0:  # a branch that eval mode does not take, or the chip did not
            one_sided += [name] if pair.digital.count and name not in read else []
            continue
        if not observer.in_reference:
            raise CalibrationError(
                f"layer {name!r} ran on the chip but not in the reference; is it the same network, and does the "
                "reference find anything in the calibration set?"
            )
        if pair.digital.count == 0:
            one_sided.append(name)
            continue
        vectors = rule(pair)
        session.alignments[name].set(*(vector.to(session.dtypes[name]) for vector in vectors))
        session.layers.append(
            LayerShift.between(name, "analog layer", pair.analog, pair.digital, pair.aligned(*vectors), pair.digital)
        )
        pairs[name] = pair
    if not pairs:
        raise CalibrationError("no analog layer ran on the calibration set")
    _warn_of_one_sided(one_sided)
    return pairs


def _weight_reads(session: CalibrationSession) -> dict[str, int]:
    layers: dict[str, Any] = named_analog_layers(session.model)
    return {name: layer.weight_reads for name, layer in layers.items() if isinstance(layer, NoiseAwareLayer)}


def _warn_of_bypassed(names: list[str]) -> None:
    """Tell of layers that the network does not call, while it reads their weights: no branch that eval mode skips."""
    if names:
        warnings.warn(
            f"the network reads the weights of {len(names)} analog layers ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}) instead of calling them: programming noise acts there, converters, "
            "read noise and calibration do not",
            stacklevel=2,
        )


def _warn_of_one_sided(names: list[str]) -> None:
    """Tell of layers that run on what is found (regions, objects), where one of the two models found nothing."""
    if names:
        warnings.warn(
            f"{len(names)} analog layers ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) had inputs in "
            "only one of chip and reference on the whole calibration set, as behind a detector that finds nothing; "
            "they are not calibrated",
            stacklevel=2,
        )


def _observer(
    name: str, session: CalibrationSession, rule: PairRule, wants_joint: bool, wants_common: bool
) -> _LayerObserver:
    alignment = session.alignments[name]
    device, n = session.devices[name], alignment.n_channels
    joint = JointMoments.empty(n, device, 3 if wants_common else 2)
    pair = Pair(Moments.empty(n, device), Moments.empty(n, device), joint)
    return _LayerObserver(name, alignment, rule, pair, wants_joint, wants_common)
