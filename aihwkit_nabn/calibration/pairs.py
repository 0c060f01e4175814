"""Chip and reference side by side: each analog layer's output moments next to the reference's on the same inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.exact import Gate, measure
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.calibration.sampling import Positions, positions_per_sample
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import LayerInput, add_correction, add_mean, align
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers

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

    def merge(self, other: Pair) -> None:
        """Take in another pair's moments, in place."""
        self.digital.merge(other.digital)
        self.analog.merge(other.analog)
        self.joint.merge(other.joint)
        if other.common is not None:
            if self.common is None:
                self.common = Moments.empty(len(other.common.mean), other.common.mean.device)
            self.common.merge(other.common)

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


# Scale and offset, and the input gain where there is one; each [channels].
PairRule = Callable[[Pair], "tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]"]
_Vectors = tuple[Tensor, ...]


@dataclass
class _ReferenceCalls:
    """What the reference's layer returned: the moments of each call over all batches, and a sample for each batch.

    Args:
        wanted: Positions to sample of each calibration sample; 0 takes none.
    """

    channel_dim: int
    wanted: int
    moments: list[Moments] = field(default_factory=list)
    probes: dict[tuple[int, int], tuple[Positions, Tensor, torch.Size]] = field(default_factory=dict)
    _rows: list[int] = field(default_factory=list)

    def take_in(self, what: str, output: Tensor, batch: int, call: int, n_samples: int) -> None:
        now = Moments.of(output, self.channel_dim)
        now.check_finite(what)
        if call == len(self.moments):
            self.moments.append(now)
            self._rows.append(0)
        else:
            self.moments[call].merge(now)
        if self.wanted and now.count:
            positions = Positions(output.shape, self.channel_dim, self._rows[call], n_samples, self.wanted)
            self.probes[batch, call] = positions, positions.take(output).clone(), output.shape
            self._rows[call] += output.shape[0]


class _PairGate(Gate[Pair, _Vectors]):
    """Aligns one layer's output with the reference's before it goes on to the next layer."""

    def __init__(
        self,
        name: str,
        session: CalibrationSession,
        rule: PairRule,
        reference: _ReferenceCalls,
        wants_common: bool,
        correction: Correction | None,
    ) -> None:
        super().__init__(name)
        self.alignment = session.alignments[name]
        self.device = session.devices[name]
        self.rule = rule
        self.reference = reference
        self.wants_common = wants_common
        self.fixed = correction

    def empty(self, call: int) -> Pair:
        pair = self._empty()
        if call < len(self.reference.moments):
            pair.digital.merge(self.reference.moments[call])
        return pair

    def _empty(self) -> Pair:
        n = self.alignment.n_channels
        joint = JointMoments.empty(n, self.device, 3 if self.wants_common else 2)
        return Pair(Moments.empty(n, self.device), Moments.empty(n, self.device), joint)

    def merged(self) -> Pair:
        whole = self._empty()
        for pair in self.calls:
            whole.merge(pair)
        for moments in self.reference.moments[len(self.calls) :]:  # calls that the chip did not make
            whole.digital.merge(moments)
        return whole

    def chip_moments(self, moments: Pair) -> Moments:
        return moments.analog

    def correction(self, moments: Pair) -> _Vectors:
        if moments.analog.count == 0 or moments.digital.count == 0:
            return ()
        return self.rule(moments)

    def observe(self, output: Tensor, given: LayerInput | None) -> Tensor:
        if self.fixed is not None and given is not None:
            output = self.fixed.added(output, given, self.alignment.channel_dim)
        mean = given.mean() if given is not None and given.mean_is_cheap and self.wants_common else None

        def take_in(pair: Pair, batch: int, call: int) -> None:
            now = Moments.of(output, self.alignment.channel_dim)
            now.check_finite(f"layer {self.name!r}")
            pair.analog.merge(now)
            if mean is not None and given is not None:
                self._add_common(pair, mean)
                pair.joint.note_inputs(given.inputs)
            if (batch, call) in self.reference.probes:
                self._compare(pair, *self.reference.probes[batch, call], output, mean)

        vectors = self.pass_through(take_in)
        if not vectors or output.numel() == 0:
            return output
        channel_dim = self.alignment.channel_dim
        return align(output, *vectors, mean=mean, channel_dim=channel_dim, overwrite=True)

    def _add_common(self, pair: Pair, mean: Tensor) -> None:
        """Take in the input mean's moments, one per channel of the output."""
        now = Moments.of(mean, self.alignment.channel_dim)
        now.check_finite(f"the input of layer {self.name!r}")
        repeats = self.alignment.n_channels // mean.shape[self.alignment.channel_dim]
        now = Moments(now.count, now.mean.repeat_interleave(repeats), now.m2.repeat_interleave(repeats))
        if pair.common is None:
            pair.common = Moments.empty(self.alignment.n_channels, mean.device)
        pair.common.merge(now)

    def _compare(
        self, pair: Pair, positions: Positions, probe: Tensor, shape: torch.Size, output: Tensor, mean: Tensor | None
    ) -> None:
        if output.shape != shape:  # a data-dependent number of regions gives no pairs
            return
        signals = [positions.take(output), probe]
        if mean is not None:
            part = positions.take(mean)
            signals.append(part.repeat_interleave(probe.shape[0] // part.shape[0], 0).to(probe.dtype))
        elif self.wants_common:
            signals.append(torch.zeros_like(probe))
        pair.joint.add(*signals)


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


@torch.no_grad()
def align_with_reference(
    session: CalibrationSession,
    rule: PairRule,
    *,
    wants_joint: bool = False,
    wants_common: bool = False,
    corrections: Mapping[str, Correction] | None = None,
) -> dict[str, Pair]:
    """Align every analog layer's output with the reference's on the same inputs, one layer after the other.

    The reference runs over all batches first. Then the chip does, each layer's output corrected by what `rule` makes of
    the moments over the whole set before it goes on, so that every layer is measured behind the final corrections of
    those before it, and any split into batches gives the same. See `exact.measure` for what that takes.

    Args:
        session: The calibration at hand.
        rule: Called with a `Pair`, returns scale and offset, and perhaps an input gain, each ``[channels]``.
        wants_joint: Also gather the correlation between chip and reference.
        wants_common: Also gather the moments of the layers' input means, and theirs with both.
        corrections: What is added to the outputs of some layers, by name, before all this.

    Returns:
        The pairs by layer name; the alignments are set and the shifts noted in the session.

    Raises:
        CalibrationError: no analog layer ran, or a layer of the reference never did while the chip's did.
    """
    reference = _run_reference(session, wants_joint or wants_common)
    fixed = corrections or {}
    gates = {
        name: _PairGate(name, session, rule, calls, wants_common, fixed.get(name)) for name, calls in reference.items()
    }
    reads = _weight_reads(session)
    try:
        for gate in gates.values():
            gate.alignment.observer = gate.observe
        measure(session, gates)
    finally:
        for gate in gates.values():
            gate.alignment.observer = None
    read = [name for name, count in _weight_reads(session).items() if count > reads[name]]
    _warn_of_bypassed([name for name in read if not gates[name].calls])
    pairs, one_sided = {}, []
    for name, gate in gates.items():
        pair = gate.merged()
        if pair.analog.count == 0:  # a branch that eval mode does not take, or the chip did not
            one_sided += [name] if pair.digital.count and name not in read else []
            continue
        if not gate.reference.moments:
            raise CalibrationError(
                f"layer {name!r} ran on the chip but not in the reference; is it the same network, and does the "
                "reference find anything in the calibration set?"
            )
        if pair.digital.count == 0:
            one_sided.append(name)
            continue
        vectors = rule(pair)
        terms = fixed[name].scaled(vectors[0]) if name in fixed else {}
        dtype = session.dtypes[name]
        parts = [vector.to(dtype) for vector in vectors]
        session.alignments[name].set(*parts, **{key: value.to(dtype) for key, value in terms.items()})
        session.layers.append(
            LayerShift.between(name, "analog layer", pair.analog, pair.digital, pair.aligned(*vectors), pair.digital)
        )
        pairs[name] = pair
    if not pairs:
        raise CalibrationError("no analog layer ran on the calibration set")
    _warn_of_one_sided(one_sided)
    return pairs


def _run_reference(session: CalibrationSession, wants_joint: bool) -> dict[str, _ReferenceCalls]:
    """Run the reference over all batches, and note what each layer returns."""
    layers = session.reference_layers()
    batches = session.all_batches()
    found = {}
    for name in layers:
        alignment = session.alignments[name]
        wanted = positions_per_sample(alignment.n_channels, session.n_samples) if wants_joint else 0
        found[name] = _ReferenceCalls(alignment.channel_dim, wanted)
    for number, (batch, size) in enumerate(zip(batches, session.batch_sizes, strict=True)):
        calls = dict.fromkeys(layers, -1)

        def note(name: str, output: Any, number: int = number, size: int = size, calls: Any = calls) -> None:
            calls[name] += 1
            found[name].take_in(f"layer {name!r} of the reference", output, number, calls[name], size)

        with session.recording_products(layers, note):
            session.run_reference(batch, number)
    return found


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
