"""Chip and reference side by side: each analog layer's output moments next to the reference's on the same inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.corrections import LayerErrors, Regressed, regression_inputs
from aihwkit_nabn.calibration.exact import Gate, measure
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.pair_moments import JointMoments, Pair
from aihwkit_nabn.calibration.regression import Correction, HalvedMoments
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.calibration.sampling import Positions, positions_per_sample
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError, some
from aihwkit_nabn.nn.alignment import LayerInput, align
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers

# Scale and offset, and the input gain where there is one; each [channels].
PairRule = Callable[[Pair], "tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]"]


@dataclass(frozen=True)
class _Aligned:
    """What a layer's moments come to: scale, offset and perhaps input gain, and the correction added before them."""

    vectors: tuple[Tensor, ...]
    correction: Correction | None
    pair: Pair

    def parts(self, dtype: torch.dtype) -> dict[str, Tensor]:
        found = dict(zip(("scale", "offset", "input_gain"), self.vectors, strict=False))
        if self.correction is not None:
            found |= self.correction.scaled(self.vectors[0])
        return {name: value.to(dtype) for name, value in found.items()}


@dataclass
class _ReferenceCalls:
    """What the reference's layer returned: the moments of each call over all batches, and a sample for each batch.

    Of each calibration sample `wanted` positions are taken.
    """

    channel_dim: int
    wanted: int
    moments: list[Moments] = field(default_factory=list)
    probes: dict[tuple[int, int], tuple[Positions, Tensor, torch.Size]] = field(default_factory=dict)
    _rows: list[int] = field(default_factory=list)

    def take_in(self, what: str, output: Tensor, batch: int, call: int, n_samples: int) -> None:
        now = Moments.of(output, self.channel_dim).check_finite(what)
        if call == len(self.moments):
            self.moments.append(now)
            self._rows.append(0)
        else:
            self.moments[call].merge(now)
        if self.wanted and now.count:
            positions = Positions(output.shape, self.channel_dim, self._rows[call], n_samples, self.wanted)
            self.probes[batch, call] = positions, positions.take(output).clone(), output.shape
            self._rows[call] += output.shape[0]


class _PairGate(Gate[Pair, "_Aligned | None"]):
    """Aligns one layer's output with the reference's before it goes on to the next layer."""

    def __init__(
        self,
        name: str,
        session: CalibrationSession,
        rule: PairRule,
        reference: _ReferenceCalls,
        wants_joint: bool,
        wants_common: bool,
        regressed: Regressed | None,
    ) -> None:
        self.alignment = session.alignments[name]
        super().__init__(name, self.alignment)
        self.device = session.devices[name]
        self.rule, self.reference, self.regressed = rule, reference, regressed
        self.wants_joint, self.wants_common = wants_joint, wants_common

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

    def correction(self, moments: Pair) -> _Aligned | None:
        if moments.analog.count == 0 or moments.digital.count == 0:
            return None
        correction = None
        if self.regressed is not None and moments.inputs is not None:
            correction = self.regressed.solve(moments.inputs)
            moments = moments.corrected(correction)
        return _Aligned(self.rule(moments), correction, moments)

    def observe(self, x: Tensor, other: LayerInput | None) -> Tensor:
        output, given = x, other
        channel_dim = self.alignment.channel_dim
        mean = given.mean() if given is not None and given.mean_is_cheap and self.wants_common else None

        def take_in(pair: Pair, batch: int, call: int) -> None:
            pair.analog.merge(Moments.of(output, channel_dim).check_finite(f"the output of layer {self.name!r}"))
            probe = self._probe_of(output, batch, call)
            if mean is not None and given is not None:
                self._add_common(pair, mean)
                pair.joint.note_inputs(given.inputs)
            if self.regressed is not None and given is not None:
                self._add_inputs(pair, given, output, probe)
            if probe is not None and self.wants_joint:
                self._compare(pair, *probe, output, mean)

        found = self.pass_through(take_in)
        if found is None or output.numel() == 0:
            return output
        if found.correction is not None and given is not None:
            output = found.correction.added(output, given, channel_dim)
        return align(output, *found.vectors, mean=mean, channel_dim=channel_dim, overwrite=True)

    def _probe_of(self, output: Tensor, batch: int, call: int) -> tuple[Positions, Tensor] | None:
        """Return the sample of the reference's output and its positions; none of another number of regions."""
        positions, probe, shape = self.reference.probes.get((batch, call), (None, None, None))
        return None if positions is None or probe is None or shape != output.shape else (positions, probe)

    def _add_inputs(
        self, pair: Pair, given: LayerInput, output: Tensor, probe: tuple[Positions, Tensor] | None
    ) -> None:
        assert self.regressed is not None
        inputs = regression_inputs(given, self.regressed.groups)
        if pair.inputs is None:
            pair.inputs = HalvedMoments(self.regressed.groups)
        pair.inputs.note_inputs(inputs, self.alignment.channel_dim, self.alignment.n_channels)
        if probe is not None:
            positions, digital = probe
            pair.inputs.take_in(
                positions.take(inputs), positions.take(output), digital, positions.is_second_half(digital.device)
            )

    def _add_common(self, pair: Pair, mean: Tensor) -> None:
        """Take in the input mean's moments, one per channel of the output."""
        now = Moments.of(mean, self.alignment.channel_dim).check_finite(f"the input of layer {self.name!r}")
        repeats = self.alignment.n_channels // len(now.mean)
        now = Moments(now.count, now.mean.repeat_interleave(repeats), now.m2.repeat_interleave(repeats))
        pair.common = now.added_to(pair.common)

    def _compare(self, pair: Pair, positions: Positions, probe: Tensor, output: Tensor, mean: Tensor | None) -> None:
        signals = [positions.take(output), probe]
        if mean is not None:
            part = positions.take(mean)
            signals.append(part.repeat_interleave(probe.shape[0] // part.shape[0], 0).to(probe.dtype))
        elif self.wants_common:
            signals.append(torch.zeros_like(probe))
        pair.joint.add(*signals)


@torch.no_grad()
def align_with_reference(
    session: CalibrationSession,
    rule: PairRule,
    *,
    wants_joint: bool = False,
    wants_common: bool = False,
    correct: Callable[[LayerErrors], dict[str, Regressed]] | None = None,
) -> dict[str, Pair]:
    """Align every analog layer's output with the reference's on the same inputs, one layer after the other.

    The reference runs over all batches first. Then the chip does, each layer's output corrected by what `rule` makes of
    the moments over the whole set before it goes on. So every layer is measured behind the final corrections of those
    before it, and any split into batches gives the same (`exact.measure`).

    Args:
        session: Chip, reference and batches.
        rule: Called with a `Pair`, returns scale and offset, and perhaps an input gain, each ``[channels]``.
        wants_joint: Also gather the correlation between chip and reference.
        wants_common: Also gather the moments of the layers' input means, and theirs with both.
        correct: Called with the layers' errors on the reference's inputs; returns how the outputs of some, by name, are
            corrected before all this.

    Returns:
        The pairs by layer name; the alignments are set and the shifts noted in the session.

    Raises:
        CalibrationError: no analog layer ran, or a layer of the reference never did while the chip's did.
    """
    regressed: dict[str, Regressed] = {}
    wants_joint = wants_joint or wants_common
    if correct is None:
        reference = _run_reference(session, wants_joint)
    else:
        with LayerErrors(session) as errors:
            reference = _run_reference(session, wants_joint, errors)
        regressed = correct(errors)
    gates = {
        name: _PairGate(name, session, rule, calls, wants_joint, wants_common, regressed.get(name))
        for name, calls in reference.items()
    }
    reads = _weight_reads(session)
    measure(session, gates)
    read = [name for name, count in _weight_reads(session).items() if count > reads[name]]
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
        found = gate.final()
        assert found is not None
        session.alignments[name].set(**found.parts(session.dtypes[name]))
        after = found.pair.aligned(*found.vectors)
        session.layers.append(LayerShift.between(name, "analog layer", pair.analog, pair.digital, after, pair.digital))
        pairs[name] = pair
    if not pairs:
        raise CalibrationError("no analog layer ran on the calibration set")
    if one_sided:  # layers that run on what is found (regions, objects), where one of the models found nothing
        warnings.warn(
            f"{len(one_sided)} analog layers ({some(one_sided)}) had inputs in only one of chip and reference on the "
            "whole calibration set, as behind a detector that finds nothing; they are not calibrated",
            stacklevel=2,
        )
    return pairs


def _run_reference(
    session: CalibrationSession, wants_joint: bool, errors: LayerErrors | None = None
) -> dict[str, _ReferenceCalls]:
    """Run the reference over all batches, and note what each layer returns; the chip's own beside it for `errors`."""
    layers = session.reference_layers()
    batches = session.all_batches()
    found = {}
    for name in layers:
        alignment = session.alignments[name]
        wanted = positions_per_sample(alignment.n_channels, session.n_samples) if wants_joint else 0
        wanted = max(wanted, 0 if errors is None else errors.positions_wanted(name))
        found[name] = _ReferenceCalls(alignment.channel_dim, wanted)
    for number, (batch, size) in enumerate(zip(batches, session.batch_sizes, strict=True)):
        calls = dict.fromkeys(layers, -1)

        def note(name: str, output: Any, number: int = number, size: int = size, calls: Any = calls) -> None:
            calls[name] += 1
            found[name].take_in(f"the output of layer {name!r} of the reference", output, number, calls[name], size)

        watching = session.recording_products(layers, note) if errors is None else errors.beside(layers, size, note)
        with watching:
            session.run_reference(batch, number)
    return found


def _weight_reads(session: CalibrationSession) -> dict[str, int]:
    layers = named_analog_layers(session.model).items()
    return {name: layer.weight_reads for name, layer in layers if isinstance(layer, NoiseAwareLayer)}
