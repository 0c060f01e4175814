"""The records of a sweep as one evaluation result per model, which tables, plots and reports take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from aihwkit_nabn.evaluation import EvaluationResult, Scenario
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED, Record, RecordLog
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies.grid.methods import DIGITAL_LABEL
from aihwkit_nabn.studies.grid.models import ModelEntry
from aihwkit_nabn.studies.grid.spec import SweepSpec
from aihwkit_nabn.studies.grid.stream import times_of
from aihwkit_nabn.studies.grid.study import described


def results_of(spec: SweepSpec, store: RecordLog) -> dict[str, EvaluationResult]:
    """Return one result per model.

    A noise setting at a time becomes a scenario; where a sweep also goes over image compression, calibration sets or
    windows of a stream, each of these is a scenario of its own, in which methods that take no calibration images are
    repeated. Where images differ from the clean test set, the digital model on the same images is a row, too.
    """
    return {model.name: _result(spec, model, store) for model in spec.models}


def _result(spec: SweepSpec, model: ModelEntry, store: RecordLog) -> EvaluationResult:
    mine = [record for record in store.sorted_records() if record.axes["model"] == model.name]
    digital = {(r.axes["jpeg"], r.axes["position"]): r.metrics for r in mine if r.method_name == DIGITAL}
    grouped: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in mine:
        if record.method_name != DIGITAL and record.chip_seed is not None:
            setting = [record.axes[name] for name in ("jpeg", "samples", "calibration", "position")]
            key = (record.scenario, record.t_inference, *setting, record.method)
            grouped.setdefault(key, {})[record.chip_seed] = record
    records: list[Record] = []
    scenarios: list[dict[str, Any]] = []
    for noise, base, place in _places(spec):
        jpeg, samples, calibration, position = place
        name = scenario_name(spec, noise, base, *place)
        seconds = float(base.t_inference)
        if spec.stream is not None and position is not None:  # of the window that ends there
            seconds = times_of(spec.stream, seconds)[spec.stream.ends.index(position)]
        strength = base.strength if name == base.name else None
        shown: dict[str, Any] = {"group": base.group, "strength": strength, "t_inference": seconds}
        scenarios.append({"name": name, **shown, "rpu_config": str(base.rpu_config)})
        for label in labels_of(spec):
            key = (noise, base.t_inference, jpeg, samples, calibration, position, label)
            chips = grouped.get(key) or grouped.get((*key[:3], None, None, position, label), {})
            for seed in sorted(chips):
                records.append(replace(chips[seed], scenario=name, **shown, axes={}))
        if jpeg is not None or position is not None:
            same = Record(scenario=name, **shown, method=DIGITAL_LABEL, method_name=DIGITAL, chip_seed=None, metrics={})
            rows = [r for r in records if r.scenario == name and r.method_name == UNCALIBRATED]
            records += [replace(same, chip_seed=r.chip_seed, metrics=digital[jpeg, position]) for r in rows]
    return EvaluationResult(
        records=records, digital=_digital(digital), settings=_settings(spec, model, store, scenarios, mine)
    )


def labels_of(spec: SweepSpec) -> list[str]:
    """Return the labels of the methods, or of what is done along the stream; the uncalibrated chip first."""
    return [entry.label for entry in (spec.methods if spec.stream is None else spec.stream.tracking)]


def _places(spec: SweepSpec) -> Iterator[tuple[str, Scenario, tuple[int | None, int, str, int | None]]]:
    """Yield noise setting and scenario with JPEG quality, calibration images, where from, and end of the window."""
    ends: Iterable[int | None] = [None] if spec.stream is None else spec.stream.ends
    for noise, base in spec.settings():
        for jpeg in spec.jpeg:
            for calibration in spec.calibration:
                for samples in spec.samples:
                    for end in ends:
                        yield noise, base, (jpeg, samples, calibration, end)


def scenario_name(
    spec: SweepSpec, noise: str, base: Scenario, jpeg: int | None, samples: int, calibration: str, position: int | None
) -> str:
    """Return the scenario's name, with whatever a sweep goes over besides."""
    parts = [base.name]
    if spec.stream is not None and spec.stream.drift is not None:
        parts = [noise]  # the time moves
    if len(spec.jpeg) > 1 or jpeg is not None:
        parts.append("not compressed" if jpeg is None else f"JPEG {jpeg}")
    if len(spec.calibration) > 1:
        parts.append(calibration.replace("_", " "))
    if len(spec.samples) > 1:
        parts.append(f"{samples} images" if samples > 1 else "1 image")
    if position is not None:
        parts.append(f"up to {position}")
    return ", ".join(parts)


def _digital(found: dict[tuple[int | None, int | None], dict[str, float]]) -> dict[str, float]:
    """Return the digital model's metrics: on clean images where they were measured, over the whole of a stream."""
    whole = [metrics for (_, position), metrics in found.items() if position is not None]
    if whole:
        return {name: sum(metrics[name] for metrics in whole) / len(whole) for name in whole[0]}
    best = max(found, key=lambda key: float("inf") if key[0] is None else float(key[0]))
    return dict(found[best])


def _settings(
    spec: SweepSpec, model: ModelEntry, store: RecordLog, scenarios: list[dict[str, Any]], mine: list[Record]
) -> dict[str, Any]:
    plain = described(spec)
    known = store.notes.get(f"model {model.name}", {})
    methods: list[Any] = list(spec.methods if spec.stream is None else spec.stream.tracking)
    conversions = {noise: store.notes.get(f"conversion {model.name} {noise}", "") for noise in spec.noise}
    return {
        "versions": plain.pop("versions"),
        "model": known.get("class", model.model),
        "device": dict(model.options).get("device", "cpu"),
        "seed": spec.seed,
        "chips": spec.chips,
        "max_samples": max(spec.samples),
        "exclude": list(model.exclude),
        "scenarios": scenarios,
        "methods": [
            {"label": entry.label, "method": entry.method, "batches": entry.images, "options": dict(entry.options)}
            for entry in methods
        ],
        "conversion": {
            scenario["name"]: conversions[noise]
            for scenario in scenarios
            for noise in spec.noise
            if scenario["rpu_config"] == str(parse_preset(noise))
        },
        "sweep": plain,
        "images": {"test": known.get("test_images"), "other_data": known.get("other_data")},
        "n_records": len(mine),
    }
