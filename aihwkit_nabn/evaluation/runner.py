"""The evaluation loop: every method on the same chips, with the same read noise and the same calibration images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.evaluation.first_call import FirstCall
from aihwkit_nabn.evaluation.measuring import Measuring
from aihwkit_nabn.evaluation.plan import CalibrationBatches, EvalFn, Plan, PlannedMethod, make_plan
from aihwkit_nabn.evaluation.result import EvaluationResult, Record
from aihwkit_nabn.evaluation.scenario import MethodSpec, Scenario, config_key
from aihwkit_nabn.evaluation.settings import describe, describe_shifts
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.verification import verification_of
from aihwkit_nabn.seeding import derive_seed, isolated_rng


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
    on_record: Callable[[Record], None] | None = None,
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
        progress: Show a bar with the time left, if the error stream is a terminal.
        on_record: Called with every `Record` as soon as it is there, e.g. to keep what an interrupted run had.

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
        stack.enter_context(_generators_restored(model, derive_seed(seed, "run")))
        stack.enter_context(evaluation_mode(model))
        bar = stack.enter_context(_Bar(plan.n_records + 1, shown=progress))
        measuring = Measuring(model, seed, eval_fn, forward_fn, reference_forward_fn, max_samples)
        run = _Run(plan, measuring, bar)
        for record in run.records(exclude):
            if on_record is not None:
                on_record(record)
    settings["conversion"] = run.conversions
    settings["layer_shifts"] = run.shifts
    settings["unverified"] = run.unverified
    return EvaluationResult(records=run.done, digital=run.digital, settings=settings)


class _Run:
    """One evaluation under way."""

    def __init__(self, plan: Plan, measuring: Measuring, bar: _Bar) -> None:
        self.plan, self.measuring, self.bar = plan, measuring, bar
        self.done: list[Record] = []
        self.conversions: dict[str, str] = {}
        self.shifts: dict[str, dict[str, Any]] = {}
        self.unverified: dict[str, str] = {}
        self.digital: dict[str, float] = {}

    def records(self, exclude: tuple[str, ...]) -> Iterator[Record]:
        """Do everything, giving each record when it is measured."""
        keys = [config_key(scenario.rpu_config) for scenario in self.plan.scenarios]
        models: dict[bytes, nn.Module] = {}
        reasons: dict[bytes, str] = {}
        for index, (scenario, key) in enumerate(zip(self.plan.scenarios, keys, strict=True)):
            is_new = key not in models
            if is_new:
                models[key] = convert_to_noise_aware(self.measuring.model, scenario.rpu_config, exclude=exclude)
                self.measuring.set_input_ranges(models[key], self.plan.range_batches)
            if not self.digital:  # after the first conversion: what cannot be converted should not cost an evaluation
                model, seed = self.measuring.model, self.measuring.seed
                with FirstCall(model) as self.first_call:
                    self.digital = self.measuring.measure(model, seed, place="for the digital model")
                self.bar.advance()
            if is_new:
                reasons[key] = self.measuring.verify(models[key], self.first_call)
            for chip_seed in self.plan.chip_seeds:
                program_chip(models[key], chip_seed, float(scenario.t_inference))
                for method in self.plan.methods:
                    self.bar.show(f"{scenario.name}, chip {chip_seed}, {method.label}")
                    self.done.append(self._try_method(models[key], scenario, chip_seed, method))
                    self.bar.advance()
                    yield self.done[-1]
            if reasons[key] and verification_of(models[key]) is None:  # nor by calibrating
                self.unverified[scenario.name] = reasons[key]
            self.conversions[scenario.name] = str(getattr(models[key], "conversion_report", ""))
            if key not in keys[index + 1 :]:
                del models[key]  # a large model per noise setting would fill the memory

    def _try_method(self, analog: nn.Module, scenario: Scenario, chip_seed: int, method: PlannedMethod) -> Record:
        place = f"in scenario {scenario.name!r}, chip {chip_seed}, method {method.label!r}"
        started = time.perf_counter()
        report: Any = None
        with evaluation_mode(analog):
            if method.calibrates:
                report = self.measuring.calibrate(analog, chip_seed, method)
                if chip_seed == self.plan.chip_seeds[0]:
                    self.shifts.setdefault(scenario.name, {})[method.label] = describe_shifts(report.layers)
            calibrated = time.perf_counter()
            try:
                metrics = self.measuring.measure(analog, chip_seed, place=place, expected=self.digital)
            finally:
                evaluated = time.perf_counter()
                if report is not None:
                    report.undo()
        return Record(
            scenario=scenario.name,
            group=scenario.group,
            strength=scenario.strength,
            t_inference=float(scenario.t_inference),
            method=method.label,
            method_name=method.spec.method,
            chip_seed=chip_seed,
            metrics=metrics,
            seconds_calibration=calibrated - started if method.calibrates else 0.0,
            seconds_evaluation=evaluated - calibrated,
            n_calibration_samples=0 if report is None else int(report.n_samples),
            note="" if report is None else "; ".join(report.notes),
        )


class _Bar:
    """A progress bar with the time left on the error stream; nothing where that is no terminal."""

    def __init__(self, total: int, *, shown: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("digital", total=total)

    def show(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()


@contextmanager
def _generators_restored(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch, the model's CUDA devices included."""
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices) if devices else nullcontext(), isolated_rng(seed):
        yield
