"""Which layers hurt most: one layer at a time on the chip, the others digital, and the other way round."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from aihwkit_nabn.calibration.session import match_reference
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import label_methods
from aihwkit_nabn.evaluation.plan import Plan
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.settings import describe
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.nn.reparametrization import copy_model
from aihwkit_nabn.nn.rewiring import replace_held
from aihwkit_nabn.results import UNCALIBRATED, Record, Results
from aihwkit_nabn.results.layers import BUT, ONLY, SHARES, WHOLE
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.results.version_0_1 import value_in
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.studies._base import WorkloadSource, WorkloadStudy
from aihwkit_nabn.workloads import CalibrationRequest, Workload

Place = tuple[str, str]
"""A layer's name and what of the network is on the chip: `ONLY` it, or all `BUT` it."""

Key = tuple[str, int | None, Place, str]
"""Scenario, chip, place and method of a record."""


@dataclass(frozen=True, kw_only=True)
class ChipJob:
    """What is to be measured on one chip.

    Attributes:
        scenario: Place in the list of scenarios.
        chip_seed: The chip.
        left: Places and labels of methods.
    """

    scenario: int
    chip_seed: int
    left: tuple[tuple[Place, str], ...]


class LayersStudy(WorkloadStudy):
    """What each layer costs on its own: only that layer on the chip, all others digital.

    The model is converted once and each chip programmed once; then the digital layers are put back in place of all but
    one, so a layer has the very weights that it has on the whole chip, with every layer the same chips. The first
    metric is the one that losses are of.

    Args:
        workload: The model as trained, its data and how to measure it.
        scenarios: As `evaluate` takes them.
        methods: What is tried on each layer; ``"none"`` is always among them. With one layer on the chip ``"paired"``
            calibrates that layer.
        chips: Number of chips, >= 1.
        seed: Chip ``i`` is programmed with ``seed + i``.
        request: Which calibration images.
        exclude: Names of modules that stay digital throughout.
        reverse: Measure also the other way round: all layers but one on the chip.
        imports: See `Study`.

    Raises:
        NabnError: an argument that cannot work, found before anything is run.
    """

    def __init__(
        self,
        workload: Workload | WorkloadSource,
        *,
        scenarios: Iterable[Scenario],
        methods: Iterable[MethodSpec | str] = (UNCALIBRATED, "paired"),
        chips: int = 5,
        seed: int = 0,
        request: CalibrationRequest | None = None,
        exclude: Exclude = (),
        reverse: bool = False,
        imports: tuple[str, ...] = (),
    ) -> None:
        super().__init__(workload, imports)
        self.scenarios = list(scenarios) if isinstance(scenarios, Iterable) else [scenarios]
        self.methods = [methods] if isinstance(methods, (str, MethodSpec)) else list(methods)
        self.chips, self.seed = chips, seed
        self.request = request or CalibrationRequest(seed=seed)
        self.exclude = excluded_names(exclude)
        self.reverse = reverse
        self.plan  # noqa: B018  # made at once, for its errors

    @cached_property
    def plan(self) -> Plan:
        """Scenarios, chips and methods, checked."""
        methods = label_methods(self.methods)
        return self.workload.plan(self.scenarios, methods, self.request, chips=self.chips, seed=self.seed)

    @cached_property
    def protocol(self) -> EvaluationProtocol:
        """How the network is measured."""
        return self.workload.protocol(self.seed, exclude=self.exclude, range_batches=self.plan.range_batches)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Each analog layer's share of the network's matrix weights."""
        with self._measuring():
            analog: Any = self.protocol.analog(self.plan.scenarios[0].rpu_config)
        report = analog.conversion_report
        weights = {entry.name: entry.n_weights for entry in report.converted}
        return {name: weights.get(name, 0) / max(report.n_weights, 1) for name in named_analog_layers(analog)}

    @property
    def places(self) -> list[Place]:
        """What is measured on every chip: the whole network, then layer by layer."""
        others = [(name, BUT) for name in self.shares] if self.reverse and len(self.shares) > 1 else []
        return [(WHOLE, ONLY), *((name, ONLY) for name in self.shares), *others]

    def _keys(self) -> Iterator[Key]:
        """Yield everything that is measured, chip by chip."""
        for scenario in self.plan.scenarios:
            for chip in self.plan.chip_seeds:
                for place in self.places:
                    for method in self.plan.methods:
                        yield scenario.name, chip, place, method.label

    def total(self, known: Mapping[str, Record]) -> int:
        """Return the number of records."""
        return self.plan.n_records * len(self.places)

    def jobs(self, known: Mapping[str, Record]) -> list[ChipJob]:
        """Return what is left, chip by chip."""
        done = {_key(record) for record in known.values()}
        left = [key for key in self._keys() if key not in done]
        names = [scenario.name for scenario in self.plan.scenarios]
        return [
            ChipJob(scenario=names.index(name), chip_seed=chip, left=tuple(key[2:] for key in keys))
            for (name, chip), keys in itertools.groupby(left, key=lambda key: key[:2])
        ]

    def measure(self, job: ChipJob, loaded: None) -> Iterator[Record]:
        """Measure layer by layer on a chip."""
        scenario = self.plan.scenarios[job.scenario]
        methods = {method.label: method for method in self.plan.methods}
        with self._measuring():
            self.protocol.keep_only(scenario.rpu_config)
            analog = self.protocol.analog(scenario.rpu_config)
            layers = named_analog_layers(analog)
            # Copies: the reference's own modules stay out of the chip's model.
            with split_attention(copy_model(self.workload.model)) as split:
                twins = match_reference(analog, split)
            self.protocol.program(analog, scenario, job.chip_seed)
            for (name, kind), label in job.left:
                away = [] if name == WHOLE else [n for n in layers if (n == name) == (kind == BUT)]
                with swapped(analog, [(layers[n], twins[n]) for n in away]):
                    found, _ = self.protocol.record(analog, scenario, job.chip_seed, methods[label])
                axes = {"layer": name, "on_chip": kind}
                yield replace(found, metrics={self.metric: found.metrics[self.metric]}, axes=axes)

    @property
    def metric(self) -> str:
        """The metric that losses are of."""
        return next(iter(self.protocol.measure_digital()))

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with isolated_rng(derive_seed(self.seed, "run")), evaluation_mode(self.workload.model):
            yield

    def result(self, known: Mapping[str, Record]) -> Results:
        """Return one record per scenario, chip, layer and method, see `aihwkit_nabn.results.layers`.

        Each layer's share of the weights is among the settings.
        """
        with self._measuring():
            digital = {self.metric: self.protocol.measure_digital()[self.metric]}
        by_key = {_key(record): record for record in known.values()}
        value = digital[self.metric]
        found = [by_key[key] for key in self._keys()]
        records = [replace(record, metrics={self.metric: value_in(record, self.metric, value)}) for record in found]
        settings = describe(self.workload.model, self.plan, max_samples=self.request.n, exclude=self.exclude)
        return Results(records=records, digital=digital, settings={**settings, SHARES: self.shares})


def _key(record: Record) -> Key:
    place = (str(record.axis("layer")), str(record.axis("on_chip")))
    return record.scenario, record.chip_seed, place, record.method


@contextmanager
def swapped(model: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> Iterator[None]:
    """Put the second module of each pair where the first is, in every place that has it, and back at the end."""
    stand_ins = {id(old): new for old, new in pairs}
    changed: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in stand_ins:
                changed.append((parent, name, child))
    for parent, name, child in changed:
        parent._modules[name] = stand_ins[id(child)]
    replace_held(model, stand_ins)
    try:
        yield
    finally:
        for parent, name, child in changed:
            parent._modules[name] = child
        replace_held(model, {id(stand_ins[id(child)]): child for _, _, child in changed})
