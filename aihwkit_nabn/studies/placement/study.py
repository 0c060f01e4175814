"""The study behind `nabn place`: each layer alone, then ever fewer digital layers, then chips not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from aihwkit_nabn.errors import NabnError, check_count, check_number
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.plan import EvalFn, Plan, PlannedMethod
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.settings import setup_of
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.excluding import matrix_layers, placed_names
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED, Record
from aihwkit_nabn.results.placement import Exclude, Placement, excluded_names
from aihwkit_nabn.results.placing import PlacementResult
from aihwkit_nabn.seeding import check_seed, derive_seed, isolated_rng
from aihwkit_nabn.studies._base import WorkloadSource, WorkloadStudy
from aihwkit_nabn.studies.placement.groups import Group, layer_groups
from aihwkit_nabn.studies.placement.jobs import DigitalJob, LayersJob, PointJob, with_budgets
from aihwkit_nabn.studies.placement.single import COMPARED, SingleLayers
from aihwkit_nabn.studies.placement.state import (
    CALL,
    CORRECTIONS,
    DIGITAL_ROW,
    DISAGREEMENT,
    KEPT,
    LAYER,
    LAYERS,
    MULTIPLICATIONS,
    PHASE,
    ROW,
    SEARCH,
    VERIFY,
    State,
    joined,
)
from aihwkit_nabn.workloads import CalibrationRequest, Workload

_SEARCH_SEEDS = 100_000  # the search chips' seeds lie so far behind those that anybody tests with


class PlacementStudy(WorkloadStudy):
    """The cheapest set of layers to keep digital so that the loss stays within a bound.

    Each layer alone on a few chips, the rest digital, disturbs the outputs by so much, without labels. In the order of
    that disturbance per multiplication, layers become digital until the loss on the search images is within the bound,
    for each budget of corrections; the cheapest in all wins. It is then measured on other chips and the test images,
    beside everything on tiles, and beside first and last layer digital.

    Args:
        workload: The model as trained, its data and how to measure it.
        scenario: The noise setting.
        method: Calibrates every chip.
        loss: That is allowed, of the first metric, in its own unit: points of accuracy, mAP between 0 and 1.
        budgets: Shares of the multiplications that corrections may cost; None: those of `BUDGETS`, or the method's own
            where it makes no corrections or its budget is given.
        search_chips: Chips that are searched on, >= 1.
        chips: Others that the placement is verified on, >= 1; chip ``i`` is programmed with ``seed + i``.
        seed: See above; also chooses images.
        search_images: Labelled images of the train set that are searched on, where the workload has them.
        request: Which calibration images.
        exclude: What stays digital throughout.
        imports: See `Study`.

    Raises:
        NabnError: an argument that cannot work, or a network without a layer that could be chosen.
    """

    def __init__(
        self,
        workload: Workload | WorkloadSource,
        *,
        scenario: Scenario,
        method: MethodSpec | str = "low_rank",
        loss: float,
        budgets: Iterable[float] | None = None,
        search_chips: int = 3,
        chips: int = 5,
        seed: int = 0,
        search_images: int = 1000,
        request: CalibrationRequest | None = None,
        exclude: Exclude = (),
        imports: tuple[str, ...] = (),
    ) -> None:
        super().__init__(workload, imports)
        self.scenario, self.seed = scenario, check_seed("seed", seed)
        self.bound = check_number("loss", loss, exclusive_minimum=0.0, meaning="the loss that is allowed")
        self.specs = with_budgets(MethodSpec(method) if isinstance(method, str) else method, budgets)
        self.search_images = check_count("search_images", search_images, minimum=1)
        first = self.seed + _SEARCH_SEEDS
        self.search_seeds = [first + i for i in range(check_count("search_chips", search_chips, minimum=1))]
        self.chip_seeds = [self.seed + i for i in range(check_count("chips", chips, minimum=1))]
        self.request = request or CalibrationRequest(seed=seed)
        self.exclude = excluded_names(exclude)
        self.plan  # noqa: B018  # made at once, for its errors

    @cached_property
    def plan(self) -> Plan:
        """The method with each budget, checked."""
        return self.workload.plan([self.scenario], self.specs, self.request, chips=len(self.chip_seeds), seed=self.seed)

    @cached_property
    def methods(self) -> dict[str, PlannedMethod]:
        """The method with each budget, by label, the smallest budget first."""
        return {method.label: method for method in self.plan.methods if method.spec.method != UNCALIBRATED}

    @cached_property
    def held_back(self) -> EvalFn | None:
        """Measures on images that are neither calibrated with nor tested on; None where there are none."""
        found, n = self.workload.held_back, self.request.n
        return None if found is None or n is None else found(self.search_images, replace(self.request, n=n + COMPARED))

    @cached_property
    def groups(self) -> list[Group]:
        """The layers to choose from."""
        with self._measuring():
            analog = self._protocol(VERIFY).convert(self.scenario.rpu_config)
            groups = layer_groups(self.workload.model, analog)
        if not groups:
            raise NabnError(f"{type(self.workload.model).__name__} has no layer inside that could be kept digital")
        return groups

    @cached_property
    def single(self) -> SingleLayers:
        """What measures single layers."""
        protocol, first = self._protocol(SEARCH), self.search_seeds[0]
        return SingleLayers(self.workload, protocol, self.scenario, self.groups, self.request, chip_seed=first)

    @cached_property
    def _latest(self) -> dict[tuple[str, tuple[str, ...]], EvaluationProtocol]:
        """The protocol of the placement that was measured last."""
        return {}

    def _state(self, known: Mapping[str, Record]) -> State:
        names = [group.name for group in self.groups]
        return State(list(known.values()), list(self.methods), names, self.search_seeds, self.bound)

    def jobs(self, known: Mapping[str, Record]) -> list[Any]:
        """Return what is left of the part that is due: single layers, points of the search, verification.

        Raises:
            NabnError: the bound is as large as the digital model's metric, so it must be in another unit.
        """
        state = self._state(known)
        found: list[Any] = [DigitalJob(images=name) for name in (SEARCH, VERIFY) if name not in state.digital]
        if found:
            return found
        metric, value = next(iter(state.digital[VERIFY].items()))
        if self.bound >= abs(value):
            raise NabnError(
                f"loss must be below what there is to lose, in its unit: the digital model has {metric} {value:.4g}, "
                f"got {self.bound:g}"
            )
        wanted = state.search()
        if wanted is None:
            rows = {(label, joined(digital)): digital for label, digital in state.wanted_rows().values()}
            return [
                job
                for (label, _), digital in rows.items()
                for job in self._points(state, VERIFY, label, digital, self.chip_seeds)
            ]
        label, chosen = wanted
        if chosen is not None:
            return self._points(state, SEARCH, label, chosen, self.search_seeds)
        left = {c: [n for n in state.groups if (label, n, c) not in state.layers] for c in self.search_seeds}
        return [LayersJob(label=label, chip_seed=chip, left=tuple(names)) for chip, names in left.items() if names]

    def _points(
        self, state: State, phase: str, label: str, digital: tuple[str, ...], seeds: Iterable[int]
    ) -> list[Any]:
        kept, expected = joined(digital), tuple(state.digital[phase].items())
        return [
            PointJob(label=label, chip_seed=chip, digital=digital, images=phase, kept=kept, expected=expected)
            for chip in seeds
            if chip not in state.measured.get((phase, label, kept), {})
        ]

    def measure(self, job: DigitalJob | LayersJob | PointJob, loaded: None) -> Iterator[Record]:
        """Do a job."""
        with self._measuring():
            if isinstance(job, LayersJob):
                yield from self._single_layers(job)
            elif isinstance(job, PointJob):
                yield self._point(job)
            else:
                metrics = self._protocol(job.images).measure_digital()
                yield self._record(DIGITAL, None, metrics, {PHASE: DIGITAL_ROW, ROW: job.images})

    def _record(self, label: str, chip: int | None, metrics: dict[str, float], axes: dict[str, Any]) -> Record:
        return Record(
            scenario=self.scenario.name,
            group=self.scenario.group,
            strength=self.scenario.strength,
            t_inference=float(self.scenario.t_inference),
            method=label,
            method_name=self.methods[label].spec.method if label in self.methods else label,
            chip_seed=chip,
            metrics=metrics,
            axes=axes,
        )

    def _single_layers(self, job: LayersJob) -> Iterator[Record]:
        for found in self.single.on_chip(job.chip_seed, self.methods[job.label], job.left):
            metrics = {
                DISAGREEMENT: found.disagreement,
                MULTIPLICATIONS: found.multiplications,
                CALL: float(found.call),
            }
            yield self._record(job.label, job.chip_seed, metrics, {PHASE: LAYERS, LAYER: found.name})

    def _point(self, job: PointJob) -> Record:
        modules = {group.name: group.exclude for group in self.groups}
        exclude = tuple(name for group in job.digital for name in modules[group])
        place = job.images, exclude
        if place not in self._latest:
            self._latest.clear()
            self._latest[place] = self._protocol(job.images, exclude)
        protocol, method, chip = self._latest[place], self.methods[job.label], job.chip_seed
        protocol.digital = dict(job.expected)
        analog = protocol.analog(self.scenario.rpu_config)
        protocol.program(analog, self.scenario, chip)
        with evaluation_mode(analog):
            report = protocol.calibrate(analog, chip, method)
            where = f"chip {chip}, {len(exclude)} layers digital, method {job.label!r}"
            try:
                metrics = protocol.measure(analog, chip, place=where, expected=protocol.digital)
            finally:
                report.undo()
        corrections = 0.0 if report.corrections is None else report.corrections.share
        return replace(
            self._record(job.label, chip, {**metrics, CORRECTIONS: corrections}, {PHASE: job.images, KEPT: job.kept}),
            n_calibration_samples=int(report.n_samples),
            seconds_calibration=report.seconds,
            note="; ".join(report.notes),
        )

    def _protocol(self, images: str, exclude: tuple[str, ...] = ()) -> EvaluationProtocol:
        protocol = self.workload.protocol(
            self.seed, exclude=(*self.exclude, *exclude), range_batches=self.plan.range_batches
        )
        if images == SEARCH and self.held_back is not None:
            protocol.eval_fn = self.held_back
        return protocol

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        with isolated_rng(derive_seed(self.seed, "run")), evaluation_mode(self.workload.model):
            yield

    def result(self, known: Mapping[str, Record]) -> PlacementResult:
        """Return what has been found; everything has been measured."""
        state = self._state(known)
        choice = state.choice()
        metric, value = next(iter(state.digital[VERIFY].items()))
        searched = state.digital[SEARCH][metric]
        if self.held_back is None:
            where = "the test images: there are no others with labels that are not calibrated with"
        else:
            where = f"images of the train set, where the digital model has {metric} {searched:.4g}"
            if searched > value:
                where += ": it was trained on them, and its loss there may be another"
        always = placed_names(self.workload.model, self.exclude)
        notes = [f"Digital throughout, and in no share: {', '.join(always)}."] if always else []
        return PlacementResult(
            metric=metric,
            digital=value,
            bound=self.bound,
            method=choice.label,
            scenario=self.scenario.name,
            steps=state.steps(choice.label),
            digital_layers=choice.digital,
            met=choice.met,
            searched=state.searched(),
            rows=state.rows(self.chip_seeds),
            notes=[*notes, f"Searched on {where}."],
        )

    def placement(self, known: Mapping[str, Record]) -> Placement:
        """Return what is found as a file takes it."""
        result, model = self.result(known), self.workload.model
        modules = {group.name: group.exclude for group in self.groups}
        chosen = [name for layer in result.digital_layers for name in modules[layer]]
        spec, found, loss = self.methods[result.method].spec, result.placement, result.placement.loss
        return Placement(
            exclude=(*placed_names(model, self.exclude), *chosen),
            layers=matrix_layers(model),
            network=str(setup_of(model)["model"]),
            noise=self.scenario.name,
            t_inference=float(self.scenario.t_inference),
            method=spec.method,
            options=dict(spec.options),
            metric=result.metric,
            bound=self.bound,
            met=result.met,
            loss={
                "mean": loss.mean,
                "low": None if loss.n == 1 else loss.low,
                "high": None if loss.n == 1 else loss.high,
                "chips": loss.n,
            },
            shares={"layers": found.layers, "corrections": found.corrections},
        )
