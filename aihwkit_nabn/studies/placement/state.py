"""What the records of a placement study say so far, and what is to be measured next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from aihwkit_nabn.results import Record
from aihwkit_nabn.results.placing import ALL_ON_TILES, CORRECTED, FIRST_LAST, FOUND, Point, Step
from aihwkit_nabn.studies.placement.search import fewest, next_point, path, upper

PHASE, LAYER, KEPT, ROW = "phase", "layer", "kept", "row"
DIGITAL_ROW, LAYERS, SEARCH, VERIFY = "digital", "layers", "search", "verify"
DISAGREEMENT, MULTIPLICATIONS, CALL, CORRECTIONS = "disagreement", "multiplications", "first call", "corrections"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A placement.

    Attributes:
        label: The method's.
        digital: Names of the layers that stay digital.
        met: Whether it is within the bound on the search chips.
    """

    label: str
    digital: tuple[str, ...]
    met: bool


@dataclass(frozen=True)
class State:
    """Records, read.

    Args:
        records: Of the study.
        labels: Of the method with each budget, the smallest budget first.
        groups: Names of the layers, those that go together as one.
        seeds: The search chips.
        bound: The loss that is allowed.
    """

    records: Iterable[Record]
    labels: Sequence[str]
    groups: Sequence[str]
    seeds: Sequence[int]
    bound: float
    _paths: dict[str, list[Step]] = field(default_factory=dict, repr=False)

    @cached_property
    def layers(self) -> dict[tuple[str, str, int | None], Record]:
        """Records of single layers, by method's label, layer and chip."""
        return {(r.method, r.axes[LAYER], r.chip_seed): r for r in self.records if r.axes[PHASE] == LAYERS}

    @cached_property
    def measured(self) -> dict[tuple[str, str, str], dict[int | None, Record]]:
        """Records of placements, by phase, method's label, digital layers and chip."""
        found: dict[tuple[str, str, str], dict[int | None, Record]] = {}
        for record in self.records:
            if record.axes[PHASE] in (SEARCH, VERIFY):
                key = record.axes[PHASE], record.method, record.axes[KEPT]
                found.setdefault(key, {})[record.chip_seed] = record
        return found

    def records_of(self, label: str, names: Iterable[str]) -> list[Record]:
        """Return the records of a placement on the search chips; none where it was not measured on all of them."""
        found = self.measured.get((SEARCH, label, joined(names)), {})
        return [found[seed] for seed in self.seeds] if set(found) >= set(self.seeds) else []

    @cached_property
    def digital(self) -> dict[str, dict[str, float]]:
        """The digital model's metrics on the images of the search and of the verification."""
        return {r.axes[ROW]: r.metrics for r in self.records if r.axes[PHASE] == DIGITAL_ROW}

    def steps(self, label: str) -> list[Step]:
        """Return the path under a method, or under the first one where single layers need not be known under it."""
        label = label if self.has_path(label) else self.labels[0]
        if label not in self._paths:
            found = {name: [self.layers[label, name, seed] for seed in self.seeds] for name in self.groups}
            self._paths[label] = path(
                {name: float(np.mean([r.metrics[DISAGREEMENT] for r in records])) for name, records in found.items()},
                {name: records[0].metrics[MULTIPLICATIONS] for name, records in found.items()},
            )
        return self._paths[label]

    def has_path(self, label: str) -> bool:
        """Whether single layers have been measured under a method, on all search chips."""
        return all((label, name, seed) in self.layers for name in self.groups for seed in self.seeds)

    def chain(self, label: str) -> tuple[str, ...]:
        """Return the layers in the order in which they become digital; one stays on tiles. Empty: not known yet."""
        return tuple(step.name for step in self.steps(label)[:-1]) if self.has_path(label) else ()

    def share(self, names: Iterable[str]) -> float:
        """Return the share of the multiplications in layers."""
        kept = set(names)
        return sum(step.share for step in self.steps(self.labels[0]) if step.name in kept)

    def losses(self, label: str, names: Iterable[str]) -> list[float]:
        """Return the losses of a placement on the search chips; none where it was not measured on all of them."""
        return [self.loss(record, SEARCH) for record in self.records_of(label, names)]

    def points(self, label: str, chain: Sequence[str]) -> dict[int, list[float]]:
        """Return the losses at those beginnings of a chain of layers that were measured, by their length."""
        found = {kept: self.losses(label, chain[:kept]) for kept in range(len(chain) + 1)}
        return {kept: losses for kept, losses in found.items() if losses}

    def loss(self, record: Record, images: str) -> float:
        """Return what the digital model has more of the first metric."""
        name, value = next(iter(self.digital[images].items()))
        return value - record.metrics[name]

    def corrections(self, label: str, names: Iterable[str]) -> float:
        """Return what corrections cost at a placement, in parts of all multiplications; not measured: as at none."""
        names = tuple(names)
        records = self.records_of(label, names) or self.records_of(label, ())
        return _corrections(records, self.share(names))

    def cost(self, label: str, names: Iterable[str]) -> float:
        """Return the share of digital multiplications."""
        names = tuple(names)
        return self.share(names) + self.corrections(label, names)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """First and last layer, in the order of calls; none where nothing else would be on tiles."""
        call = {name: self.layers[self.labels[0], name, self.seeds[0]].metrics[CALL] for name in self.groups}
        ends = tuple(dict.fromkeys((min(call, key=call.__getitem__), max(call, key=call.__getitem__))))
        return ends if set(ends) < set(self.groups) else ()

    def search(self) -> tuple[str, tuple[str, ...] | None] | None:
        """Return what is to be measured next on the search chips: a method, and the layers that are digital.

        None in place of the layers: single ones. None in all: the search is done. First no layer is digital, under
        every method; then fewer layers are tried with more corrections, before more with fewer, as long as they may be
        cheaper than the best so far. Of those found the first ones may be superfluous, where the metric takes another
        view than the outputs; so the same is done from their end. The usual rule is tried too, where it is cheaper.
        """
        if not self.has_path(self.labels[0]):
            return self.labels[0], None
        for label in self.labels:
            if not self.losses(label, ()):
                return label, ()
        best = min([self.cost(label, ()) for label in self.labels if self._fits(label, ())], default=float("inf"))
        for label in reversed(self.labels):
            if not self.has_path(label) and not self._fits(label, ()) and self.cost(label, ()) < best:
                return label, None
            for chain in self._chains(label):
                most = max((k for k in range(len(chain) + 1) if self.cost(label, chain[:k]) < best), default=-1)
                points = {kept: losses for kept, losses in self.points(label, chain).items() if kept <= most}
                wanted = next_point(points, most, self.bound)
                if wanted is not None:
                    return label, chain[:wanted]
                found = fewest(points, self.bound)
                if found is not None:
                    best = min(best, self.cost(label, chain[:found]))
            if self.ends and self.cost(label, self.ends) < best:
                if not self.losses(label, self.ends):
                    return label, self.ends
                if self._fits(label, self.ends):
                    best = self.cost(label, self.ends)
        return None

    def _fits(self, label: str, names: tuple[str, ...]) -> bool:
        losses = self.losses(label, names)
        return bool(losses) and upper(losses) <= self.bound

    def _chains(self, label: str) -> Iterator[tuple[str, ...]]:
        """Yield the order of the layers and, of those that the search along it has found, the reverse."""
        chain = self.chain(label)
        yield chain
        found = fewest(self.points(label, chain), self.bound)
        if found:
            yield chain[:found][::-1]

    def candidates(self, label: str) -> dict[tuple[str, ...], bool]:
        """Return the placements that were measured under a method, and whether each may be taken."""
        found: dict[tuple[str, ...], bool] = {}
        for chain in self._chains(label):
            points = self.points(label, chain)
            fits = fewest(points, self.bound)
            for kept in points:
                names = tuple(sorted(chain[:kept]))
                found[names] = found.get(names, False) or kept == fits
        ends = tuple(sorted(self.ends))
        if ends and self.losses(label, ends):
            found[ends] = found.get(ends, False) or self._fits(label, ends)
        return found

    def choice(self) -> Choice:
        """Return the cheapest placement within the bound; where there is none, the one with the least loss."""
        listed = [(label, names, met) for label in self.labels for names, met in self.candidates(label).items()]
        within = [(self.cost(label, names), label, names) for label, names, met in listed if met]
        if within:
            _, label, digital = min(within)
            return Choice(label=label, digital=digital, met=True)
        measured = [
            (float(np.mean(self.losses(label, names))), self.cost(label, names), label, names)
            for label, names, _ in listed
        ]
        _, _, label, digital = min(measured)
        return Choice(label=label, digital=digital, met=False)

    def wanted_rows(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return method and digital layers of each row of the verification.

        The usual rule is there without corrections, or with as few as there may be, and with the placement's.
        """
        choice, plain = self.choice(), self.labels[0]
        rows: dict[str, tuple[str, tuple[str, ...]]] = {ALL_ON_TILES: (plain, ())}
        if self.ends:
            rows[FIRST_LAST] = plain, self.ends
            if choice.label != plain:
                rows[CORRECTED] = choice.label, self.ends
        return {**rows, FOUND: (choice.label, choice.digital)}

    def searched(self) -> list[Point]:
        """Return the points of the search."""
        return [
            Point(
                label=label,
                kept=len(names),
                layers=self.share(names),
                corrections=self.corrections(label, names),
                losses=self.losses(label, names),
            )
            for label in self.labels
            for names in sorted(self.candidates(label), key=self.share)
        ]

    def rows(self, seeds: Sequence[int]) -> list[Point]:
        """Return the rows of the verification, over these chips."""
        found = []
        for row, (label, names) in self.wanted_rows().items():
            records = [self.measured[VERIFY, label, joined(names)][seed] for seed in seeds]
            layers = self.share(names)
            losses = [self.loss(record, VERIFY) for record in records]
            corrections = _corrections(records, layers)
            point = Point(label=row, kept=len(names), layers=layers, corrections=corrections, losses=losses)
            found.append(point)
        return found


def joined(names: Iterable[str]) -> str:
    """Return layers as one text, whatever their order."""
    return " ".join(sorted(names))


def _corrections(records: Iterable[Record], digital: float) -> float:
    """Return what corrections cost in parts of all multiplications; chips know them in parts of their own."""
    return (1 - digital) * float(np.mean([record.metrics[CORRECTIONS] for record in records]))
