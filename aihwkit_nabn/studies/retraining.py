"""Calibration against hardware-aware training: the study behind `nabn compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult, Scenario
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.settings import describe, describe_shifts
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.results import DIGITAL, Record, RecordLog
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.studies._base import Note, WorkloadSource, WorkloadStudy
from aihwkit_nabn.studies.contenders import (
    Contender,
    Job,
    NoiseSetting,
    list_jobs,
    row_order,
    rows_of,
    settings_of,
)
from aihwkit_nabn.training import TrainedModel, TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.training.store import TrainedStore
from aihwkit_nabn.workloads import CalibrationRequest, Workload

TRAINED = "trained"
"""First word of the notes that say what was trained."""


@dataclass(frozen=True, kw_only=True)
class NetworkJob:
    """What is to be measured of one network: as it came, or trained for a setting.

    Attributes:
        setting: Place in the list of settings.
        contender: Place in the list of contenders.
        left: Places of the scenario in the setting, chips, and labels of the rows that are there.
    """

    setting: int
    contender: int
    left: tuple[tuple[int, int, tuple[str, ...]], ...]


class RetrainingStudy(WorkloadStudy):
    """The network as it came, calibrated, trained at right and at wrong noise, and both, on the same chips.

    Args:
        workload: The network, with labels to train with.
        settings: The noise settings.
        listed: The contenders.
        chips: Chips per scenario.
        request: Which calibration images; its seed is that of the first chip too.
        recipe: How networks are trained.
        out: Folder with a folder ``trained`` of networks.
        resume: Use networks that are there.
        imports: See `Study`.

    Raises:
        NabnError: the workload has no labels, or the recipe does not suit it.
    """

    def __init__(
        self,
        workload: Workload | WorkloadSource,
        settings: Sequence[NoiseSetting],
        listed: Sequence[Contender],
        *,
        chips: int,
        request: CalibrationRequest,
        recipe: Recipe,
        out: Path,
        resume: bool,
        imports: tuple[str, ...] = (),
    ) -> None:
        super().__init__(workload, imports)
        if self.workload.train is None:
            raise NabnError("this workload has no labelled images to train with")
        if self.workload.check_recipe is not None:
            self.workload.check_recipe(recipe)
        self.settings, self.listed, self.request = list(settings), list(listed), request
        self.chip_seeds = [request.seed + index for index in range(chips)]
        self.recipe, self.folder, self.resume = recipe, out / TRAINED, resume

    @cached_property
    def store(self) -> TrainedStore:
        """The trained networks."""
        return TrainedStore(self.folder, self.workload.model, resume=self.resume)

    @cached_property
    def _noises(self) -> dict[str, TrainingNoise]:
        return {}

    @cached_property
    def _protocols(self) -> dict[int, EvaluationProtocol]:
        return {}

    def total(self, known: Mapping[str, Record]) -> int:
        """Return the number of records."""
        return sum(len(rows_of(job)) for job in self._all())

    def _all(self) -> Iterator[Job]:
        return list_jobs(self.settings, self.chip_seeds, self.listed)

    def jobs(self, known: Mapping[str, Record]) -> list[NetworkJob]:
        """Return what is left, network by network."""
        done = {(record.scenario, record.chip_seed, record.method) for record in known.values()}
        groups: dict[tuple[int, int], list[tuple[int, int, tuple[str, ...]]]] = {}
        for job in self._all():
            setting, scenario, chip, contender = job
            there = tuple(label for label in rows_of(job) if (scenario.name, chip, label) in done)
            if len(there) < len(rows_of(job)):
                key = self.settings.index(setting), self.listed.index(contender)
                groups.setdefault(key, []).append((setting.scenarios.index(scenario), chip, there))
        return [NetworkJob(setting=key[0], contender=key[1], left=tuple(left)) for key, left in groups.items()]

    def measure(self, job: NetworkJob, loaded: None) -> Iterator[Record | Note]:
        """Measure a network on its chips, trained before if need be."""
        setting, contender = self.settings[job.setting], self.listed[job.contender]
        network = self.workload.model
        if contender.factor is not None:
            trained = self.trained(setting, contender)
            network = trained.model
            yield Note(
                name=f"{TRAINED} {setting.name}, {contender.label}",
                value={"digital": self._protocol(network).measure_digital(), **trained.report.to_dict()},
            )
        protocol = self._protocol(network)
        with isolated_rng(derive_seed(self.request.seed, "run")), evaluation_mode(network):
            for place, chip, known in job.left:
                yield from self._on_chip(protocol, contender, setting.scenarios[place], chip, known)

    def _on_chip(
        self, protocol: EvaluationProtocol, contender: Contender, scenario: Scenario, chip: int, known: tuple[str, ...]
    ) -> Iterator[Record | Note]:
        place = contender.place(scenario)
        plan = self.workload.plan([place], contender.methods, self.request, chips=1, seed=chip)
        protocol.keep_only(place.rpu_config)
        protocol.range_batches = plan.range_batches
        analog: Any = protocol.analog(place.rpu_config)
        protocol.program(analog, place, chip)
        as_it_came = contender.factor is None and contender.compensated
        if as_it_came:  # before the records, which say that a job is done
            settings = describe(protocol.model, plan, max_samples=self.request.n, exclude=())
            settings["conversion"] = {scenario.name: str(analog.conversion_report)}
            yield Note(name=_settings(scenario.name), value=settings)
            yield Note(name=DIGITAL, value=dict(protocol.digital))
        for method in plan.methods:
            label, name = contender.row(method.spec, scenario)
            if label in known:
                continue
            record, layers = protocol.record(analog, place, chip, method)
            if layers is not None and as_it_came:
                yield Note(name=f"shifts {scenario.name} | {method.label}", value=describe_shifts(layers))
            yield replace(record, method=label, method_name=name)

    def trained(self, setting: NoiseSetting, contender: Contender) -> TrainedModel:
        """Return the network of a contender for a setting, trained if need be."""
        if setting.name not in self._noises:
            self._noises[setting.name] = setting.matched_noise(self.workload.model)
        noise = self._noises[setting.name].scaled(contender.factor or 0.0)
        train = self.workload.train
        assert train is not None
        return self.store.get(
            f"{setting.name}, {contender.key}",
            {**vars(self.recipe), "noise": str(noise), "std": noise.std},
            lambda: train(noise, setting.scenarios[0].rpu_config, self.recipe),
        )

    def _protocol(self, network: nn.Module) -> EvaluationProtocol:
        """Return how a network is measured, which is made once for the network as it came and for the latest one."""
        if id(network) not in self._protocols:
            mine = id(self.workload.model)
            self._protocols = {key: kept for key, kept in self._protocols.items() if key == mine}
            self._protocols[id(network)] = self.workload.protocol(self.request.seed, network)
        return self._protocols[id(network)]

    def result(self, log: RecordLog) -> EvaluationResult:
        """Return everything that was measured."""
        scenarios = [scenario for setting in self.settings for scenario in setting.scenarios]
        labels = row_order(self.listed, scenarios)
        # How scenarios are grouped depends on what else was asked for, perhaps later than they were measured.
        places: dict[str, dict[str, Any]] = {s.name: {"group": s.group, "strength": s.strength} for s in scenarios}
        by_key = {
            (record.method, record.scenario, record.chip_seed): replace(record, **places[record.scenario])
            for record in log.records.values()
            if record.scenario in places
        }
        keys = [(label, scenario.name, chip) for label in labels for scenario in scenarios for chip in self.chip_seeds]
        records = [by_key[key] for key in keys if key in by_key]
        each = {scenario.name: log.notes[_settings(scenario.name)] for scenario in scenarios}
        described = {entry["name"]: entry for settings in each.values() for entry in settings["scenarios"]}
        converted = {name: text for settings in each.values() for name, text in settings["conversion"].items()}
        shifts: dict[str, dict[str, Any]] = {}
        for scenario in scenarios:
            mine = {label: log.notes.get(f"shifts {scenario.name} | {label}") for label in labels}
            found = {label: value for label, value in mine.items() if value is not None}
            old = each[scenario.name].get("layer_shifts", {}).get(scenario.name, {})  # of version 0.1
            if found or old:
                shifts[scenario.name] = {**old, **found}
        training = self._training(log)
        settings = each[scenarios[-1].name] | {
            "seed": self.chip_seeds[0],
            "chips": len(self.chip_seeds),
            "scenarios": [described[scenario.name] | places[scenario.name] for scenario in scenarios],
            "conversion": {scenario.name: converted[scenario.name] for scenario in scenarios},
            "layer_shifts": shifts,
            "methods": [_method_entry(label, records) for label in labels],
            "comparison": settings_of(self.listed, self.settings),
            "training": training,
            "price": [self._price(label, records, training) for label in labels],
        }
        return EvaluationResult(records=records, digital=log.notes[DIGITAL], settings=settings)

    def _training(self, log: RecordLog) -> dict[str, Any]:
        found = {}
        for setting in self.settings:
            for contender in self.listed:
                if contender.factor is None:
                    continue
                name = f"{setting.name}, {contender.label}"
                told = log.notes.get(f"{TRAINED} {name}")
                if told is None:  # a log of version 0.1
                    trained = self.trained(setting, contender)
                    told = {"digital": self._protocol(trained.model).measure_digital(), **trained.report.to_dict()}
                found[name] = {"row": contender.label, **told}
        return found

    def _price(self, label: str, records: list[Record], training: dict[str, Any]) -> dict[str, Any]:
        mine = [record for record in records if record.method == label]
        reports = [entry for entry in training.values() if entry["row"] == label.partition(" + ")[0]]
        calibration_images = max(record.n_calibration_samples for record in mine)
        return {
            "label": label,
            "images": max([calibration_images, *(entry["images"] for entry in reports)]),
            "labels": max((entry["labels"] for entry in reports), default=0),
            "images_passed": max((entry["images_seen"] for entry in reports), default=0),
            "seconds_training": fmean([entry["seconds"] for entry in reports]) if reports else 0.0,
            "seconds_calibration": fmean(record.seconds_calibration for record in mine),
        }


def training_line(note: Note) -> str | None:
    """Return what was trained, in words; None of another note."""
    if not note.name.startswith(f"{TRAINED} "):
        return None
    report = note.value
    return (
        f"{note.name.removeprefix(f'{TRAINED} ')}: trained at {report['noise']}, {report['epochs']} epochs of "
        f"{report['images']} labelled images, {report['seconds']:.0f} s, loss {report['losses'][-1]:.3f}"
    )


def _settings(scenario: str) -> str:
    return f"settings {scenario}"


def _method_entry(label: str, records: list[Record]) -> dict[str, Any]:
    name = next(record.method_name for record in records if record.method == label)
    return {"label": label, "method": name, "batches": None, "options": {}}
