"""Try on a few samples whether passes of a network can run side by side, before a calibration relies on it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.input_ranges import exact_products
from aihwkit_nabn.calibration.lockstep import Lockstep, Stop
from aihwkit_nabn.chip.moment import ChipMoment
from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.comparing import difference, leaves
from aihwkit_nabn.nn.keeping import kept
from aihwkit_nabn.seeding import isolated_rng

_TOLERANCE = 1e-6
# Seconds that a halted pass may keep another one waiting, beside many times what a pass takes alone.
_PATIENCE = 10.0
_TIMES = 50.0


@dataclass(frozen=True)
class Rehearsal:
    """How passes of a network may be run.

    Args:
        side_by_side: Whether halted passes leave one another alone.
        stops: The stops of a pass, in order.
    """

    side_by_side: bool = True
    stops: tuple[Stop, ...] = ()

    def last(self, gates: Collection[str]) -> Stop | None:
        """Return the last stop at one of these gates."""
        return next((stop for stop in reversed(self.stops) if stop[0] in gates), None)


@torch.no_grad()
def rehearse(model: nn.Module, forwards: Sequence[Callable[[], Any]], order: Mapping[str, int]) -> Rehearsal:
    """Run passes on different inputs alone and side by side, and compare what they return; the chip stays as it was.

    They differ where a network or its hooks keep something of a pass outside of it, such as an attribute; and they wait
    for ever where a pass holds a lock. `order` is as for `Lockstep`.
    """
    parts = (OutputAlignment, NoiseAwareBatchNorm)
    # Alignments go by the names of their layers.
    named = {name.removesuffix(".alignment"): module for name, module in model.named_modules()}
    gates: dict[str, Any] = {name: module for name, module in named.items() if isinstance(module, parts)}
    alone, begin = [], time.perf_counter()
    seen: list[str] = []
    for number, forward in enumerate(forwards):
        with _watching(model, gates, (seen if number == 0 else []).append):
            alone.append(forward())
    stops = tuple((name, seen[:place].count(name)) for place, name in enumerate(seen))
    patience = max(_PATIENCE, _TIMES * (time.perf_counter() - begin))
    results: list[Any] = [None] * len(forwards)

    def keep(number: int, forward: Callable[[], Any]) -> None:
        results[number] = forward()

    runs = [functools.partial(keep, number, forward) for number, forward in enumerate(forwards)]
    line = Lockstep(model, runs, order, patience=patience, last=stops[-1] if stops else None)
    try:
        with _watching(model, gates, lambda name: line.halt(line.next_call(name))):
            line.run()
    except Exception:  # stuck, or what one pass left made another one fail
        return Rehearsal(False, stops)
    return Rehearsal(all(_same(one, other) for one, other in zip(alone, results, strict=True)), stops)


@contextmanager
def _watching(model: nn.Module, gates: Mapping[str, Any], at: Callable[[str], object]) -> Iterator[None]:
    moment = ChipMoment.take(model)
    try:
        with kept(model), exact_products(model), isolated_rng(0):
            for name, gate in gates.items():
                gate.observer = functools.partial(_passing, at, name)
            yield
    finally:
        moment.restore()


def _passing(at: Callable[[str], object], name: str, x: Tensor, other: Any) -> Any:
    at(name)
    return other.trained_statistics() if isinstance(other, NoiseAwareBatchNorm) else x


def _same(alone: Any, together: Any) -> bool:
    pairs = list(leaves(alone)), list(leaves(together))
    return [t.shape for t in pairs[0]] == [t.shape for t in pairs[1]] and all(
        difference(got, expected) <= _TOLERANCE for expected, got in zip(*pairs, strict=True)
    )
