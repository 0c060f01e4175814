"""The evaluation loop: every method on the same chips, with the same read noise and the same calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from aihwkit_nabn.evaluation.methods import MethodSpec
from aihwkit_nabn.evaluation.plan import CalibrationBatches, EvalFn, Plan, PlannedMethod, make_plan
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.scenario import Scenario, config_key
from aihwkit_nabn.evaluation.settings import agree_on_files, describe, describe_shifts
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.progress import Meter
from aihwkit_nabn.reporting import write_report
from aihwkit_nabn.results import DIGITAL, Record, RecordLog, Results
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import derive_seed, isolated_run


class EvaluationResult(Results):
    """Records of all scenarios, chips and methods, with the digital model's metrics and what the run was made with."""

    def report(self, path: str | Path) -> Path:
        """Write ``results.json``, ``table.md``, ``table.csv`` and one plot per metric into the folder `path`.

        Returns:
            The folder's path.

        Raises:
            NabnError: `path` is a file, or cannot be made.
        """
        return write_report(self, path)


def evaluate(
    model: nn.Module,
    *,
    scenarios: Iterable[Scenario],
    methods: Iterable[MethodSpec | str],
    eval_fn: EvalFn,
    chips: int = 10,
    seed: int = 0,
    calibration_batches: CalibrationBatches | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    max_samples: int | None = None,
    exclude: Exclude = (),
    progress: bool = True,
    on_record: Callable[[Record], object] | None = None,
    record_file: RecordLog | None = None,
) -> EvaluationResult:
    """Measure what a chip does to a model and what each calibration method brings back.

    The digital model comes first. Then, for every scenario, every chip is programmed once and all methods are tried on
    that very chip, each undone before the next; the read-noise stream, the global random generators and the order of
    the calibration batches start alike for each, so methods differ by what they do and by nothing else. The chip as
    programmed, method ``"none"``, is always among them. The model and the caller's random generators come out as they
    were; no module is ever put into training mode.

    Args:
        model: The digital model as trained.
        scenarios: Noise settings and times, with different names.
        methods: Names of calibration methods, or `MethodSpec` for the calibration set, the label, and options.
        eval_fn: Called as ``eval_fn(model)`` under ``torch.no_grad``; returns metric names to finite numbers, higher
            being better, the same names every time.
        chips: Number of chips per scenario, >= 1. Five or more give a usable interval.
        seed: Chip ``i`` is programmed with ``seed + i``.
        calibration_batches: Unlabelled batches in an iterable that can be run through repeatedly (a list, a
            DataLoader), or a mapping of names to such iterables, among which `MethodSpec.batches` chooses; where it
            does not, methods that replace statistics take ``"augmented"`` (images through the training augmentation,
            which the trained statistics contain) and the others ``"plain"`` (images as at test time).
        forward_fn: Called as ``forward_fn(model, batch)`` when calibrating; default: as `calibrate` does.
        reference_forward_fn: The same for the digital model that methods compare with; see `calibrate`.
        max_samples: Calibrate with at most this many samples; default: all.
        exclude: Names of modules that stay digital, as `convert_to_noise_aware` takes them.
        progress: Show how far it is on the error stream: a bar on a terminal, a line every half a minute elsewhere.
        on_record: Called with every `Record` as soon as it is measured.
        record_file: Keeps what is measured as it comes; what an interrupted run left in it is not measured again, and
            the result is that of a run without interruption.

    Raises:
        NabnError: an argument that cannot work, found before anything is run; or an ``eval_fn`` that returned
            something else than the same finite metrics each time.
    """
    plan = make_plan(
        model,
        scenarios=scenarios,
        methods=methods,
        chips=chips,
        seed=seed,
        calibration_batches=calibration_batches,
        max_samples=max_samples,
        eval_fn=eval_fn,
        forward_fn=forward_fn,
        reference_forward_fn=reference_forward_fn,
        on_record=on_record,
    )
    exclude = excluded_names(exclude)
    settings = describe(model, plan, max_samples=max_samples, exclude=exclude)
    with ExitStack() as stack:
        stack.enter_context(isolated_run(model, derive_seed(seed, "run")))
        stack.enter_context(evaluation_mode(model))
        meter = stack.enter_context(Meter(plan.n_records + 1, shown=progress))
        protocol = EvaluationProtocol(
            model,
            eval_fn,
            seed=seed,
            forward_fn=forward_fn,
            reference_forward_fn=reference_forward_fn,
            max_samples=max_samples,
            exclude=exclude,
            range_batches=plan.range_batches,
        )
        run = _Run(plan, protocol, meter, record_file or RecordLog(None, {}))
        for record in run.records():
            if on_record is not None:
                on_record(record)
        protocol.on_digital = None  # which holds the file of records
    return EvaluationResult(records=run.done(), digital=protocol.digital, settings=settings | run.settings())


class _Run:
    """One evaluation under way; what is measured stands in the log."""

    def __init__(self, plan: Plan, protocol: EvaluationProtocol, meter: Meter, log: RecordLog) -> None:
        self.plan, self.protocol, self.meter, self.log = plan, protocol, meter, log
        protocol.on_digital = self._digital_is_there
        agree_on_files(log, plan.scenarios)
        protocol.digital = dict(log.notes.get(DIGITAL, {}))
        places: dict[str, dict[str, Any]] = {
            scenario.name: {"group": scenario.group, "strength": scenario.strength} for scenario in plan.scenarios
        }
        self.known = {
            (record.scenario, record.chip_seed, record.method): replace(record, **places[record.scenario])
            for record in log.records.values()
            if record.scenario in places  # which group it is in depends on what else is asked for
        }
        done = bool(protocol.digital) + sum(key in self.known for s in plan.scenarios for key in self._keys(s))
        meter.update(done, plan.n_records + 1, before=done)

    def _keys(self, scenario: Scenario) -> list[tuple[str, int | None, str]]:
        return [(scenario.name, chip, method.label) for chip in self.plan.chip_seeds for method in self.plan.methods]

    def records(self) -> Iterator[Record]:
        """Do everything that is not known, giving each record when it is measured."""
        keys = [config_key(scenario.rpu_config) for scenario in self.plan.scenarios]
        for index, scenario in enumerate(self.plan.scenarios):
            whole = self.protocol.digital and _conversion(scenario) in self.log.notes
            if not whole or any(key not in self.known for key in self._keys(scenario)):
                if not self.protocol.digital:
                    self.meter.show("digital")
                analog = self.protocol.analog(scenario.rpu_config)
                yield from self._on_chips(analog, scenario)
                self.log.note(_conversion(scenario), str(getattr(analog, "conversion_report", "")))
            if keys[index] not in keys[index + 1 :]:
                self.protocol.release(scenario.rpu_config)

    def done(self) -> list[Record]:
        """Return all records."""
        return [self.known[key] for scenario in self.plan.scenarios for key in self._keys(scenario)]

    def settings(self) -> dict[str, Any]:
        """Return what was found out about the conversions, and what calibrating changed in each layer."""
        notes, shifts = self.log.notes, {}
        for scenario in self.plan.scenarios:
            kept = {method.label: notes.get(_shifts(scenario, method)) for method in self.plan.methods}
            if any(found is not None for found in kept.values()):
                shifts[scenario.name] = {label: found for label, found in kept.items() if found is not None}
        conversions = {scenario.name: notes[_conversion(scenario)] for scenario in self.plan.scenarios}
        return {"conversion": conversions, "layer_shifts": shifts}

    def _digital_is_there(self, metrics: dict[str, float]) -> None:
        self.log.note(DIGITAL, metrics)
        self.meter.advance()

    def _on_chips(self, analog: nn.Module, scenario: Scenario) -> Iterator[Record]:
        for chip_seed in self.plan.chip_seeds:
            left = [m for m in self.plan.methods if (scenario.name, chip_seed, m.label) not in self.known]
            if left:
                self.protocol.program(analog, scenario, chip_seed)
            for method in left:
                self.meter.show(f"{scenario.name}, chip {chip_seed}, {method.label}")
                record, layers = self.protocol.record(analog, scenario, chip_seed, method)
                if layers is not None and chip_seed == self.plan.chip_seeds[0]:
                    self.log.note(_shifts(scenario, method), describe_shifts(layers))
                self.log.add(record)
                self.known[scenario.name, chip_seed, method.label] = record
                self.meter.advance()
                yield record


def _conversion(scenario: Scenario) -> str:
    return f"conversion {scenario.name}"


def _shifts(scenario: Scenario, method: PlannedMethod) -> str:
    return f"shifts {scenario.name} | {method.label}"
