"""Chip and reference side by side: each analog layer's output moments next to the reference's on the same inputs."""

from __future__ import annotations

import math
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
from aihwkit_nabn.nn.alignment import OutputAlignment, align

# Positions per channel, and values in all, of a call whose reference values are kept until the chip's come, for the
# correlation.
_PROBE = 1024
_PROBE_VALUES = 2**16


@dataclass
class Pair:
    """One layer's moments so far.

    Args:
        digital: Of the reference's output.
        analog: Of the chip's output before alignment.
        cross: Of the two at the same positions of the same inputs, from a sample of positions.
    """

    digital: Moments
    analog: Moments
    cross: CrossMoments

    @property
    def correlation(self) -> Tensor:
        """``[channels]`` float64, between -1 and 1."""
        return self.cross.correlation


@dataclass
class CrossMoments:
    """Joint second moments of two signals over a sample of positions, per channel."""

    count: int
    mean_a: Tensor
    mean_d: Tensor
    aa: Tensor
    dd: Tensor
    ad: Tensor

    @classmethod
    def empty(cls, n_channels: int, device: torch.device) -> CrossMoments:
        """Return the moments of nothing."""
        zeros = [torch.zeros(n_channels, dtype=torch.float64, device=device) for _ in range(5)]
        return cls(0, *zeros)

    def add(self, a: Tensor, d: Tensor) -> None:
        """Take in two ``[channels, positions]`` samples, few enough positions for sums in their own precision."""
        n = a.shape[1]
        if n == 0:
            return
        a, d = (x if x.dtype is torch.float64 else x.float() for x in (a, d))
        a_mean, d_mean = a.mean(1, keepdim=True), d.mean(1, keepdim=True)
        a, d = a - a_mean, d - d_mean
        aa, dd = torch.linalg.vector_norm(a, dim=1).double() ** 2, torch.linalg.vector_norm(d, dim=1).double() ** 2
        ad = a.mul_(d).sum(1).double()
        if self.count == 0:
            self.count, self.mean_a, self.mean_d = n, a_mean.squeeze(1).double(), d_mean.squeeze(1).double()
            self.aa, self.dd, self.ad = aa, dd, ad
            return
        total = self.count + n
        weight = self.count * n / total
        delta_a, delta_d = a_mean.squeeze(1) - self.mean_a, d_mean.squeeze(1) - self.mean_d
        self.aa = torch.addcmul(self.aa + aa, delta_a, delta_a, value=weight)
        self.dd = torch.addcmul(self.dd + dd, delta_d, delta_d, value=weight)
        self.ad = torch.addcmul(self.ad + ad, delta_a, delta_d, value=weight)
        self.mean_a = self.mean_a + delta_a * (n / total)
        self.mean_d = self.mean_d + delta_d * (n / total)
        self.count = total

    @property
    def correlation(self) -> Tensor:
        """``[channels]``; 1 where either signal does not vary."""
        varies = (self.aa > 0) & (self.dd > 0)
        product = torch.where(varies, self.aa * self.dd, torch.ones_like(self.aa))
        return torch.where(varies, self.ad / product.sqrt(), torch.ones_like(self.ad)).clamp(-1.0, 1.0)


PairRule = Callable[[Pair], "tuple[Tensor, Tensor]"]


@dataclass
class _LayerObserver:
    """Aligns one layer's output with the estimate so far, this call included, before it goes on to the next layer."""

    name: str
    alignment: OutputAlignment
    rule: PairRule
    pair: Pair
    aligned: Moments
    wants_cross: bool
    pending: deque[tuple[Moments, Tensor | None]] = field(default_factory=deque)

    def note_reference(self, output: Tensor) -> None:
        moments = Moments.of(output, self.alignment.channel_dim)
        moments.check_finite(f"layer {self.name!r} of the reference")
        probe = _sample(output, self.alignment.channel_dim) if self.wants_cross else None
        self.pending.append((moments, probe))

    def __call__(self, output: Tensor) -> Tensor:
        now = Moments.of(output, self.alignment.channel_dim)
        now.check_finite(f"layer {self.name!r}")
        self.pair.analog.merge(now)
        if self.pending:
            digital, probe = self.pending.popleft()
            self.pair.digital.merge(digital)
            if probe is not None:
                analog_probe = _sample(output, self.alignment.channel_dim)
                if analog_probe.shape == probe.shape:  # a data-dependent number of regions gives no pairs
                    self.pair.cross.add(analog_probe, probe)
        if now.count == 0 or self.pair.digital.count == 0:
            return output
        scale, offset = self.rule(self.pair)
        self.aligned.merge(now.affine(scale, offset))
        return align(output, scale, offset, self.alignment.channel_dim, overwrite=True)

    def end_batch(self) -> None:
        while self.pending:
            self.pair.digital.merge(self.pending.popleft()[0])


def _sample(output: Tensor, channel_dim: int) -> Tensor:
    """Return the values on a coarse grid of positions, ``[channels, positions]``, the same one for equal shapes."""
    channels = output.dim() + channel_dim
    n_channels = max(output.shape[channels], 1)
    positions = output.numel() // n_channels
    wanted = min(_PROBE, max(_PROBE_VALUES // n_channels, 128))
    grid = [slice(None)] * output.dim()
    # Neighbouring positions say nearly the same, so the grid is thinned along the longest dimensions first.
    lengths = {d: output.shape[d] for d in range(output.dim()) if d != channels}
    steps = dict.fromkeys(lengths, 1)
    while positions > wanted:
        longest = max(lengths, key=lambda d: lengths[d] / steps[d])
        steps[longest] += 1
        positions = math.prod(-(-length // steps[d]) for d, length in lengths.items())
    for d, step in steps.items():
        grid[d] = slice(step // 2, None, step)
    return output[tuple(grid)].movedim(channel_dim, 0).reshape(output.shape[channels], -1)


@torch.no_grad()
def align_with_reference(session: CalibrationSession, rule: PairRule, *, wants_cross: bool = False) -> dict[str, Pair]:
    """Run reference and chip over the batches, once each, and align every analog layer's output with the reference's.

    Batch by batch the reference goes first; then the chip, each layer's output corrected by what `rule` makes of the
    moments of all calls so far before it goes on, so that every layer is measured behind corrected ones. Both sides'
    moments cover the same samples at every step, so what is special about them cancels.

    Args:
        session: The calibration at hand.
        rule: Called with a `Pair`, returns scale and offset, each ``[channels]``.
        wants_cross: Also gather the correlation between chip and reference.

    Returns:
        The pairs by layer name; the alignments are set and the shifts noted in the session.

    Raises:
        CalibrationError: no analog layer ran, or a layer of the reference never did while the chip's did.
    """
    reference_layers = session.reference_layers()
    observers = {name: _observer(name, session, rule, wants_cross) for name in reference_layers}

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
    pairs = {}
    for name, observer in observers.items():
        pair = observer.pair
        if pair.analog.count == 0:
            continue  # a branch that eval mode does not take
        if pair.digital.count == 0:
            raise CalibrationError(f"layer {name!r} ran on the chip but not in the reference; is it the same network?")
        scale, offset = rule(pair)
        dtype = session.dtypes[name]
        session.alignments[name].set(scale.to(dtype), offset.to(dtype))
        session.layers.append(
            LayerShift.between(name, "analog layer", pair.analog, pair.digital, observer.aligned, pair.digital)
        )
        pairs[name] = pair
    if not pairs:
        raise CalibrationError("no analog layer ran on the calibration set")
    return pairs


def _observer(name: str, session: CalibrationSession, rule: PairRule, wants_cross: bool) -> _LayerObserver:
    alignment = session.alignments[name]
    device = session.devices[name]
    n = alignment.n_channels
    pair = Pair(Moments.empty(n, device), Moments.empty(n, device), CrossMoments.empty(n, device))
    return _LayerObserver(name, alignment, rule, pair, Moments.empty(n, device), wants_cross)
