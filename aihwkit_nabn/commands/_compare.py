"""A comparison with hardware-aware training, record by record: for `nabn compare` and ``tools/compare_hwa.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from torch import nn

from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.progress import Meter
from aihwkit_nabn.results import DIGITAL, Record, RecordLog
from aihwkit_nabn.training import TrainedModel, TrainingNoise
from aihwkit_nabn.training.comparison import (
    Contender,
    Job,
    NoiseSetting,
    list_jobs,
    measure,
    row_order,
    rows_of,
    settings_of,
)
from aihwkit_nabn.training.store import TrainedStore

EvalFn = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is compared, apart from chips and rows.

    Attributes:
        model: The digital network as it came.
        eval_fn: As `evaluate` takes it.
        calibration_batches: By name, as `evaluate` takes them.
        train: Trains the network at a noise, on a chip's configuration.
        recipe: What must be the same for a trained network to be used again; plain JSON values.
        forward_fn: As `evaluate` takes it.
        reference_forward_fn: As `evaluate` takes it.
    """

    model: nn.Module
    eval_fn: EvalFn
    calibration_batches: Mapping[str, Iterable[Any]] | None
    train: Callable[[TrainingNoise, Any], TrainedModel]
    recipe: dict[str, Any]
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None


class Comparison:
    """A comparison under way in a folder: ``records.jsonl`` and the trained networks.

    Args:
        bench: What is compared.
        settings: The noise settings.
        listed: The contenders.
        out: The folder.
        setup: What must be the same for measurements to belong together.
        resume: Go on with what is in the folder.
    """

    def __init__(
        self,
        bench: Bench,
        settings: list[NoiseSetting],
        listed: list[Contender],
        *,
        out: Path,
        setup: dict[str, Any],
        resume: bool,
    ) -> None:
        self.bench, self.settings, self.listed = bench, settings, listed
        self.log = RecordLog(out / "records.jsonl", {**setup, "recipe": bench.recipe}, resume=resume)
        self.store = TrainedStore(out / "trained", bench.model, resume=resume)
        self.noises: dict[str, TrainingNoise] = {}
        self._digital: dict[int, dict[str, float]] = {}

    def run(self, console: Console, chip_seeds: list[int]) -> EvaluationResult:
        """Measure what is missing and return everything."""
        jobs = [job for job in list_jobs(self.settings, chip_seeds, self.listed) if not self._done(job)]
        with self.log, Meter(len(jobs), transient=True) as meter:
            for job in jobs:
                setting, scenario, chip, contender = job
                label = contender.label or "as it came"
                meter.show(f"{scenario.name}, {label}, chip {chip}")
                self._measure(job, lambda text: meter.tell(console, text))
                meter.advance()
        return self._merge(chip_seeds)

    def trained(self, setting: NoiseSetting, contender: Contender, say: Callable[[str], None]) -> TrainedModel:
        """Return the network of a contender for a setting, trained if need be."""
        if setting.name not in self.noises:
            self.noises[setting.name] = setting.matched_noise(self.bench.model)
        noise = self.noises[setting.name].scaled(contender.factor or 0.0)

        def train() -> TrainedModel:
            result = self.bench.train(noise, setting.scenarios[0].rpu_config)
            report = result.report
            say(
                f"{setting.name}, {contender.label}: trained at {report.noise}, {report.epochs} epochs of "
                f"{report.images} labelled images, {report.seconds:.0f} s, loss {report.losses[-1]:.3f}"
            )
            return result

        return self.store.get(
            f"{setting.name}, {contender.key}", {**self.bench.recipe, "noise": str(noise), "std": noise.std}, train
        )

    def _done(self, job: Job) -> bool:
        _, scenario, chip, contender = job
        described = bool(contender.key) or _settings(scenario.name) in self.log.notes
        return set(rows_of(job)) <= self.log.done(scenario.name, chip) and described

    def _measure(self, job: Job, say: Callable[[str], None]) -> None:
        setting, scenario, chip, contender = job
        trained = contender.factor is not None
        network = self.trained(setting, contender, say).model if trained else self.bench.model
        result = measure(
            job,
            network,
            eval_fn=lambda candidate: self._evaluated(candidate, network),
            calibration_batches=self.bench.calibration_batches,
            forward_fn=self.bench.forward_fn,
            reference_forward_fn=self.bench.reference_forward_fn,
            skip=self.log.done(scenario.name, chip),
            on_record=self.log.add,
        )
        if not trained:  # the result's digital metrics are those of the network as it came
            self.log.note(_settings(scenario.name), result.settings)
            self.log.note(DIGITAL, result.digital)

    def _evaluated(self, candidate: nn.Module, network: nn.Module) -> dict[str, float]:
        """Measure, the digital network itself only once."""
        if candidate is not network:
            return self.bench.eval_fn(candidate)
        if id(network) not in self._digital:
            self._digital[id(network)] = self.bench.eval_fn(network)
        return dict(self._digital[id(network)])

    def _merge(self, chip_seeds: list[int]) -> EvaluationResult:
        scenarios = [scenario for setting in self.settings for scenario in setting.scenarios]
        labels = row_order(self.listed, scenarios)
        # How scenarios are grouped depends on what else was asked for, perhaps later than they were measured.
        places: dict[str, dict[str, Any]] = {s.name: {"group": s.group, "strength": s.strength} for s in scenarios}
        by_key = {
            (record.method, record.scenario, record.chip_seed): replace(record, **places[record.scenario])
            for record in self.log.records.values()
            if record.scenario in places
        }
        keys = [(label, scenario.name, chip) for label in labels for scenario in scenarios for chip in chip_seeds]
        records = [by_key[key] for key in keys if key in by_key]
        each = {scenario.name: self.log.notes[_settings(scenario.name)] for scenario in scenarios}
        described = {entry["name"]: entry for settings in each.values() for entry in settings["scenarios"]}
        converted = {name: text for settings in each.values() for name, text in settings["conversion"].items()}
        training = self._training()
        settings = each[scenarios[-1].name] | {
            "seed": chip_seeds[0],
            "chips": len(chip_seeds),
            "scenarios": [described[scenario.name] | places[scenario.name] for scenario in scenarios],
            "conversion": {scenario.name: converted[scenario.name] for scenario in scenarios},
            "methods": [_method_entry(label, records) for label in labels],
            "comparison": settings_of(self.listed, self.settings),
            "training": training,
            "price": [self._price(label, records, training) for label in labels],
        }
        return EvaluationResult(records=records, digital=self.log.notes[DIGITAL], settings=settings)

    def _training(self) -> dict[str, Any]:
        found = {}
        for setting in self.settings:
            for contender in self.listed:
                if contender.factor is None:
                    continue
                trained = self.trained(setting, contender, lambda text: None)
                digital = self._evaluated(trained.model, trained.model)
                found[f"{setting.name}, {contender.label}"] = {
                    "row": contender.label,
                    "digital": digital,
                    **trained.report.to_dict(),
                }
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


def _settings(scenario: str) -> str:
    return f"settings {scenario}"


def _method_entry(label: str, records: list[Record]) -> dict[str, Any]:
    name = next(record.method_name for record in records if record.method == label)
    return {"label": label, "method": name, "batches": None, "options": {}}
