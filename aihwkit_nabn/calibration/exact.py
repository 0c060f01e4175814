"""Measure layer after layer exactly, however the calibration set is split into batches."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

from aihwkit_nabn.calibration.lockstep import Lockstep
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.rehearsal import Rehearsal
from aihwkit_nabn.calibration.report import distance

if TYPE_CHECKING:
    from aihwkit_nabn.calibration.session import CalibrationSession

# Where layers are called several times, moments that a further pass moves by no more than this have settled: in
# standard deviations, root mean square over a layer's channels.
_SETTLED = 1e-3
_MOST_PASSES = 10

M = TypeVar("M")
C = TypeVar("C")


class Gate(ABC, Generic[M, C]):
    """One layer that is measured on all batches before any of them goes on to the next.

    A layer that is called several times is known behind its last call only. A first pass corrects each call by its own
    moments over all batches; further ones by what the pass before found for all calls together, until that has settled:
    at the latest after as many passes as there are such layers. Layers that no batch comes to behind one of these are
    done with the first pass.

    Attributes:
        name: The layer's.
        place: The alignment or BatchNorm whose observer it is while measuring.
        calls: Moments of each call over all batches, of the pass at hand.
        is_done: Whether its correction is final, and nothing more is measured.
    """

    def __init__(self, name: str, place: Any) -> None:
        self.name = name
        self.place = place
        self.calls: list[M] = []
        self.is_done = False
        self._line: Lockstep | None = None
        self._estimates: dict[int, C] = {}
        self._of_all_calls: C | None = None

    @abstractmethod
    def observe(self, x: Tensor, other: Any) -> Any:
        """What the place calls with each of its inputs; returns what it goes on with, see the place's `observer`."""

    @abstractmethod
    def empty(self, call: int) -> M:
        """Return the moments of a call before the chip's part is taken in."""

    @abstractmethod
    def merged(self) -> M:
        """Return the moments of all calls together."""

    @abstractmethod
    def chip_moments(self, moments: M) -> Moments:
        """Return the chip's part of the moments, by which it is told whether they have settled."""

    @abstractmethod
    def correction(self, moments: M) -> C:
        """Return what follows from moments."""

    def final(self) -> C:
        """Return the correction that follows from all calls together, after the last pass."""
        if len(self.calls) == 1 and 0 in self._estimates:
            return self._estimates[0]
        return self.correction(self.merged())

    def begin(self, line: Lockstep, late: Collection[str] = ()) -> None:
        """Begin a pass over the batches; `late` are gates that some batch came to when the others had gone on."""
        if self.is_done:
            return
        is_provisional = len(self.calls) > 1 or (bool(self.calls) and self.name in late)
        self._of_all_calls = self.correction(self.merged()) if is_provisional else None
        self.calls, self._estimates, self._line = [], {}, line

    def pass_through(self, take_in: Callable[[M, int, int], object]) -> C:
        """Take in a call of the running batch, wait for the other batches, and return the correction.

        `take_in` is called with the moments to add to, the number of the batch and that of the call in the batch.
        """
        if self.is_done:
            return self.final()
        assert self._line is not None
        stop = self._line.next_call(self.name)
        call = stop[1]
        if self._line.is_new(stop):
            if call == len(self.calls):
                self.calls.append(self.empty(call))
            take_in(self.calls[call], self._line.batch, call)
            self._estimates.pop(call, None)
        if self._of_all_calls is not None:
            return self._of_all_calls
        self._line.halt(stop)
        if call not in self._estimates:
            self._estimates[call] = self.correction(self.calls[call])
        return self._estimates[call]


def measure(session: CalibrationSession, gates: Mapping[str, Gate[M, C]]) -> None:
    """Run the chip over all batches, every gate's correction following from all of them, until the moments are final.

    `gates` are by layer, in the order of the network's modules.
    """
    batches = session.all_batches()
    way = session.rehearsal() if len(batches) > 1 else Rehearsal()
    if not way.side_by_side:
        session.notes.append("batches cannot run side by side through this network, so each layer takes a new pass")
    try:
        for gate in gates.values():
            gate.place.observer = gate.observe
        _measure(session, gates, batches, way)
    finally:
        for gate in gates.values():
            gate.place.observer = None


def _measure(session: CalibrationSession, gates: Mapping[str, Gate[M, C]], batches: list[Any], way: Rehearsal) -> None:
    order = {name: number for number, name in enumerate(gates)}
    before: dict[str, Moments] = {}
    late: set[str] = set()
    for number in range(_MOST_PASSES):
        forwards = [functools.partial(session.run_analog, batch, index) for index, batch in enumerate(batches)]
        line = Lockstep(
            session.model,
            forwards,
            order,
            on_stop=lambda done: session.step_done(done, len(gates)),
            one_by_one=not way.side_by_side,
            last=way.last([name for name, gate in gates.items() if not gate.is_done]),
        )
        for gate in gates.values():
            gate.begin(line, late)
        line.run()
        late |= line.late
        session.n_passes += line.n_passes
        now = {name: gate.chip_moments(gate.merged()) for name, gate in gates.items() if gate.calls}
        shared = {name for name, gate in gates.items() if len(gate.calls) > 1 or name in late}
        if number >= len(shared) or _has_settled(before, now):
            return
        behind = _behind(shared, line.ways())
        for name, gate in gates.items():
            gate.is_done = bool(gate.calls) and name not in behind
        before = now
    session.notes.append(
        f"layers that the network calls several times had not settled after {_MOST_PASSES} passes over all images"
    )


def _behind(shared: Collection[str], ways: Collection[Sequence[str]]) -> set[str]:
    """Return shared gates and those that some batch came to after one of them, by whatever way."""
    found, before = set(shared), -1
    while len(found) > before:
        before = len(found)
        for way in ways:
            first = next((place for place, gate in enumerate(way) if gate in found), len(way))
            found.update(way[first:])
    return found


def _has_settled(before: Mapping[str, Moments], now: Mapping[str, Moments]) -> bool:
    return before.keys() == now.keys() and all(max(distance(now[name], before[name])) <= _SETTLED for name in now)
