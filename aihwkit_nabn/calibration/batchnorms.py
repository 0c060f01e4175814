"""The chip's statistics at every BatchNorm."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aihwkit_nabn.calibration.exact import Gate, measure
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.errors import NotApplicableError
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics

if TYPE_CHECKING:
    from aihwkit_nabn.calibration.session import CalibrationSession

# Called with a layer and moments of its input; returns mean and variance, each ``[channels]``.
StatisticsRule = Callable[[NoiseAwareBatchNorm, Moments], Statistics]


class _BatchNormGate(Gate[Moments, Statistics]):
    def __init__(self, name: str, bn: NoiseAwareBatchNorm, rule: StatisticsRule) -> None:
        super().__init__(name, bn)
        self.bn = bn
        self.rule = rule

    def empty(self, call: int) -> Moments:
        return _nothing(self.bn)

    def merged(self) -> Moments:
        return functools.reduce(Moments.merge, self.calls, self.empty(0))

    def chip_moments(self, moments: Moments) -> Moments:
        return moments

    def correction(self, moments: Moments) -> Statistics:
        return _followed(self.rule, self.bn, moments)

    def observe(self, x: Tensor, other: NoiseAwareBatchNorm) -> Statistics:
        return self.pass_through(lambda moments, batch, call: moments.merge(_input_moments(self.name, x)))


@torch.no_grad()
def measure_batchnorms(session: CalibrationSession, rule: StatisticsRule) -> dict[str, Moments]:
    """Give every BatchNorm what `rule` makes of its input's moments over the whole calibration set.

    Every layer is measured behind the final statistics of those before it, so any split into batches gives the same
    (`exact.measure`).

    Returns:
        The moments by layer; the statistics are set and the shifts noted in the session.

    Raises:
        CalibrationError: the model has no BatchNorm, none ran, or one saw NaN.
    """
    check_batchnorms(session)
    gates = {name: _BatchNormGate(name, bn, rule) for name, bn in session.batchnorms.items()}
    measure(session, gates)
    found = _of_layers_that_ran({name: gate.merged() for name, gate in gates.items()})
    set_batchnorms(session, found, rule)
    return found


@torch.no_grad()
def follow_batchnorms(session: CalibrationSession, rule: StatisticsRule) -> dict[str, Moments]:
    """Run the chip over one batch after the other, each BatchNorm normalising a batch with what `rule` makes of it.

    Returns:
        Population moments of each BatchNorm's input.

    Raises:
        CalibrationError: the model has no BatchNorm, none ran, or one saw NaN.
    """
    check_batchnorms(session)
    gathered = {name: _nothing(bn) for name, bn in session.batchnorms.items()}
    try:
        for name, bn in session.batchnorms.items():
            bn.observer = _follower(name, gathered[name], rule)
        for batch in session.batches():
            session.run_analog(batch)
    finally:
        for bn in session.batchnorms.values():
            bn.observer = None
    session.n_passes += 1
    return _of_layers_that_ran(gathered)


def set_batchnorms(session: CalibrationSession, gathered: dict[str, Moments], rule: StatisticsRule) -> None:
    """Give each BatchNorm the statistics `rule` makes of its population moments, and note the shifts."""
    for name, moments in gathered.items():
        bn = session.batchnorms[name]
        mean, var = rule(bn, moments)
        trained = _as_moments(*bn.trained_statistics(), moments.count)
        bn.set_calibrated(mean, var)
        session.layers.append(
            LayerShift.between(name, "BatchNorm", moments, trained, moments, _as_moments(mean, var, moments.count))
        )


def check_batchnorms(session: CalibrationSession) -> None:
    """Raise `NotApplicableError` if the model has no BatchNorm to calibrate."""
    if not session.batchnorms:
        raise NotApplicableError(
            "the model has no BatchNorm with trained statistics to calibrate; use method='paired', which needs none"
        )


def _of_layers_that_ran(gathered: dict[str, Moments]) -> dict[str, Moments]:
    """Leave out branches that eval mode does not take (an auxiliary head): they keep their trained statistics."""
    found = {name: moments for name, moments in gathered.items() if moments.count}
    if not found:
        raise NotApplicableError("no BatchNorm layer ran on the calibration set")
    return found


def _follower(name: str, total: Moments, rule: StatisticsRule) -> Callable[..., Statistics]:
    def observe(x: Tensor, bn: NoiseAwareBatchNorm) -> Statistics:
        now = _input_moments(name, x)
        total.merge(now)
        return _followed(rule, bn, now)

    return observe


def _followed(rule: StatisticsRule, bn: NoiseAwareBatchNorm, moments: Moments) -> Statistics:
    """Return what a layer normalises with: the trained statistics where there was nothing."""
    trained = bn.trained_statistics()
    mean, var = rule(bn, moments) if moments.count else trained
    return mean.to(trained[0]), var.to(trained[0])


def _input_moments(name: str, x: Tensor) -> Moments:
    return Moments.of(x, 1).check_finite(f"the input of BatchNorm {name!r}")


def _nothing(bn: NoiseAwareBatchNorm) -> Moments:
    return Moments.empty(bn.num_features, bn.trained_statistics()[0].device)


def _as_moments(mean: Tensor, var: Tensor, count: int) -> Moments:
    return Moments(count, mean.double(), var.double() * count)
