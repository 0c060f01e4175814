"""The evaluation loop: every method on the same chips, with the same read noise and the same calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from aihwkit_nabn.evaluation.methods import MethodSpec
from aihwkit_nabn.evaluation.plan import CalibrationBatches, EvalFn, Plan, PlannedMethod, make_plan
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.result import EvaluationResult
from aihwkit_nabn.evaluation.scenario import Scenario, config_key
from aihwkit_nabn.evaluation.settings import agree_on_files, describe, describe_shifts
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.progress import Meter
from aihwkit_nabn.results import DIGITAL, Record, RecordLog
from aihwkit_nabn.seeding import derive_seed, isolated_run


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
    exclude: Iterable[str] = (),
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
        model=model,
        scenarios=scenarios,
        methods=methods,
        chips=chips,
        seed=seed,
        calibration_batches=calibration_batches,
        functions={
            "eval_fn": eval_fn,
            "forward_fn": forward_fn,
            "reference_forward_fn": reference_forward_fn,
            "on_record": on_record,
        },
        max_samples=max_samples,
    )
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
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
        run = _Run(plan, protocol, meter, record_file)
        for record in run.records():
            if on_record is not None:
                on_record(record)
        protocol.on_digital = None  # which holds the file of records
    settings["conversion"] = run.conversions
    settings["layer_shifts"] = run.shifts
    return EvaluationResult(records=run.done, digital=protocol.digital, settings=settings)


class _Run:
    """One evaluation under way."""

    def __init__(self, plan: Plan, protocol: EvaluationProtocol, meter: Meter, file: RecordLog | None) -> None:
        self.plan, self.protocol, self.meter, self.file = plan, protocol, meter, file
        self.done: list[Record] = []
        self.conversions: dict[str, str] = {}
        self.shifts: dict[str, dict[str, Any]] = {}
        self.known: dict[tuple[str, int | None, str], Record] = {}
        protocol.on_digital = self._digital_is_there
        if file is not None:
            agree_on_files(file, plan.scenarios)
            protocol.digital = dict(file.notes.get(DIGITAL, {}))
            places: dict[str, dict[str, Any]] = {
                scenario.name: {"group": scenario.group, "strength": scenario.strength} for scenario in plan.scenarios
            }
            self.known = {
                (record.scenario, record.chip_seed, record.method): replace(record, **places[record.scenario])
                for record in file.records.values()
                if record.scenario in places  # which group it is in depends on what else is asked for
            }
            wanted = [key for scenario in plan.scenarios for key in self._keys(scenario)]
            done = bool(protocol.digital) + sum(key in self.known for key in wanted)
            meter.update(done, plan.n_records + 1, before=done)

    def _keys(self, scenario: Scenario) -> list[tuple[str, int, str]]:
        return [(scenario.name, chip, method.label) for chip in self.plan.chip_seeds for method in self.plan.methods]

    def records(self) -> Iterator[Record]:
        """Do everything that is not known, giving each record when it is measured."""
        configs = [scenario.rpu_config for scenario in self.plan.scenarios]
        keys = [config_key(config) for config in configs]
        for index, scenario in enumerate(self.plan.scenarios):
            if not self._take_known(scenario):
                if not self.protocol.digital:
                    self.meter.show("digital")
                analog = self.protocol.analog(scenario.rpu_config)
                yield from self._on_chips(analog, scenario)
                self.conversions[scenario.name] = str(getattr(analog, "conversion_report", ""))
                self._note(_conversion(scenario), self.conversions[scenario.name])
            if keys[index] not in keys[index + 1 :]:
                self.protocol.release(scenario.rpu_config)

    def _take_known(self, scenario: Scenario) -> bool:
        """Take what an earlier run left of a scenario; whether that is all of it."""
        keys = self._keys(scenario)
        if self.file is None or not self.protocol.digital or any(key not in self.known for key in keys):
            return False
        if _conversion(scenario) not in self.file.notes:  # it ended right there
            return False
        self.done += [self.known[key] for key in keys]
        self.conversions[scenario.name] = self.file.notes[_conversion(scenario)]
        self._take_shifts(scenario)
        return True

    def _take_shifts(self, scenario: Scenario) -> None:
        """Say what calibrating changed as an earlier run found it, in the order of the methods."""
        notes = self.file.notes if self.file is not None else {}
        kept = {method.label: notes.get(_shifts(scenario, method)) for method in self.plan.methods}
        found = {label: shifts for label, shifts in kept.items() if shifts is not None}
        if found:
            self.shifts[scenario.name] = found

    def _digital_is_there(self, metrics: dict[str, float]) -> None:
        self._note(DIGITAL, metrics)
        self.meter.advance()

    def _on_chips(self, analog: nn.Module, scenario: Scenario) -> Iterator[Record]:
        for chip_seed in self.plan.chip_seeds:
            programmed = False
            for method in self.plan.methods:
                known = self.known.get((scenario.name, chip_seed, method.label))
                if known is not None:
                    self.done.append(known)
                    continue
                if not programmed:
                    self.protocol.program(analog, scenario, chip_seed)
                    programmed = True
                self.meter.show(f"{scenario.name}, chip {chip_seed}, {method.label}")
                record, layers = self.protocol.record(analog, scenario, chip_seed, method)
                if layers is not None and chip_seed == self.plan.chip_seeds[0]:
                    shifts = describe_shifts(layers)
                    self.shifts.setdefault(scenario.name, {})[method.label] = shifts
                    self._note(_shifts(scenario, method), shifts)
                if self.file is not None:
                    self.file.add(record)
                self.done.append(record)
                self.meter.advance()
                yield record
        if self.file is not None:
            self._take_shifts(scenario)

    def _note(self, name: str, value: Any) -> None:
        if self.file is not None:
            self.file.note(name, value)


def _conversion(scenario: Scenario) -> str:
    return f"conversion {scenario.name}"


def _shifts(scenario: Scenario, method: PlannedMethod) -> str:
    return f"shifts {scenario.name} | {method.label}"
