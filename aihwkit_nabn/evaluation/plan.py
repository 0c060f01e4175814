"""Everything about an evaluation that can be checked before the first forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.calibration import CALIBRATION_METHODS, CalibrationMethod
from aihwkit_nabn.calibration.method import build_method, unknown_method
from aihwkit_nabn.errors import NabnError, check_count, is_finite_number, suggestion
from aihwkit_nabn.evaluation.methods import PLAIN, MethodSpec, label_methods, suiting_set
from aihwkit_nabn.evaluation.scenario import Scenario, config_key
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.seeding import check_seed

EvalFn = Callable[[nn.Module], Mapping[str, float]]
CalibrationBatches = Iterable[Any] | Mapping[str, Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class PlannedMethod:
    """A method with everything that calibrating takes.

    Attributes:
        spec: What the user asked for, with a label.
        batches: The calibration set; None where the method needs none.
        needs_reference: Whether the method compares with the digital model.
    """

    spec: MethodSpec
    batches: Iterable[Any] | None
    needs_reference: bool

    @property
    def label(self) -> str:
        """How tables call the method."""
        return self.spec.label or self.spec.method

    @property
    def calibrates(self) -> bool:
        """Whether it does anything at all."""
        return self.spec.method != UNCALIBRATED


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked evaluation: scenarios x chips x methods.

    Attributes:
        scenarios: Noise settings and times.
        methods: What is tried on every chip.
        chip_seeds: The chips.
        range_batches: What static input ranges are set from: images as at test time, where there is a choice.
    """

    scenarios: list[Scenario]
    methods: list[PlannedMethod]
    chip_seeds: list[int]
    range_batches: Iterable[Any] | None

    @property
    def n_records(self) -> int:
        """Number of evaluations, the digital one not counted."""
        return len(self.scenarios) * len(self.methods) * len(self.chip_seeds)


def make_plan(
    model: object,
    *,
    scenarios: Iterable[Scenario],
    methods: Iterable[MethodSpec | str],
    chips: int,
    seed: int,
    calibration_batches: CalibrationBatches | None,
    max_samples: int | None = None,
    **functions: object,
) -> Plan:
    """Check what `aihwkit_nabn.evaluate` was given, with its callables, and return what is to be done.

    Raises:
        NabnError: anything that cannot work, named with its value and with what is allowed.
    """
    if not isinstance(model, nn.Module):
        raise NabnError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, function in functions.items():
        if not callable(function) and not (function is None and name != "eval_fn"):
            raise NabnError(f"{name} must be callable, got {function!r}")
    check_count("chips", chips, minimum=1)
    first = check_seed("seed", seed)
    if max_samples is not None:
        check_count("max_samples", max_samples, minimum=1)
    checked = _check_scenarios(scenarios)
    planned = [_plan_method(spec, calibration_batches) for spec in label_methods(methods)]
    range_batches = _range_batches(calibration_batches)
    ranged = {config_key(scenario.rpu_config) for scenario in checked if has_input_ranges(scenario.rpu_config)}
    _refuse_one_shot([method.batches for method in planned] * len(checked) * chips + [range_batches] * len(ranged))
    chip_seeds = [first + i for i in range(chips)]
    return Plan(scenarios=checked, methods=planned, chip_seeds=chip_seeds, range_batches=range_batches)


def check_metrics(metrics: object, *, place: str, expected: Iterable[str] | None = None) -> dict[str, float]:
    """Return what ``eval_fn`` returned as plain floats; `place` is where, for messages, `expected` its names.

    Raises:
        NabnError: no mapping, an empty one, other names than before, or a value that is no finite number.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise NabnError(f'eval_fn must return a non-empty dict such as {{"accuracy": 91.6}}, got {metrics!r} {place}')
    plain = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name.strip():
            raise NabnError(f"eval_fn must name its metrics with text, got the name {name!r} {place}")
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if not is_finite_number(value):
            raise NabnError(f"eval_fn must return finite numbers, got {name} = {value!r} {place}")
        plain[name] = float(value)
    if expected is not None and set(plain) != set(expected):
        raise NabnError(
            f"eval_fn must return the same metrics every time: the digital model had {sorted(expected)}, "
            f"got {sorted(plain)} {place}"
        )
    return plain


def _check_scenarios(scenarios: Iterable[Scenario]) -> list[Scenario]:
    single: Any = scenarios  # one scenario without a list around it is taken too
    checked: list[Any] = list(single) if isinstance(single, Iterable) and not isinstance(single, str) else [single]
    if not checked:
        raise NabnError("scenarios must hold at least one Scenario, got none")
    names: set[str] = set()
    for scenario in checked:
        if not isinstance(scenario, Scenario):
            given = repr(scenario) if isinstance(scenario, str) else f"a {type(scenario).__name__}"
            raise NabnError(f"scenarios must be Scenario(name=..., rpu_config=...) objects, got {given}")
        if scenario.name in names:
            raise NabnError(f"scenarios must have different names, got {scenario.name!r} twice")
        names.add(scenario.name)
    return checked


def _plan_method(spec: MethodSpec, calibration_batches: CalibrationBatches | None) -> PlannedMethod:
    if spec.method == UNCALIBRATED:
        return PlannedMethod(spec=spec, batches=None, needs_reference=False)
    if spec.method not in CALIBRATION_METHODS:
        raise unknown_method(spec.method, (UNCALIBRATED,))
    method = build_method(spec.method, **spec.options)  # so that a wrong option is found now
    if not method.needs_batches:
        if spec.batches is not None:
            raise NabnError(f"method {spec.method!r} takes no calibration set, got batches={spec.batches!r}")
        return PlannedMethod(spec=spec, batches=None, needs_reference=method.needs_reference)
    name, batches = _find_batches(spec, method, calibration_batches)
    return PlannedMethod(spec=replace(spec, batches=name), batches=batches, needs_reference=method.needs_reference)


def _find_batches(
    spec: MethodSpec, method: CalibrationMethod, calibration_batches: CalibrationBatches | None
) -> tuple[str | None, Iterable[Any]]:
    if calibration_batches is None:
        raise NabnError(f"method {spec.method!r} needs calibration_batches, got None")
    if not isinstance(calibration_batches, Mapping):
        if spec.batches is not None:
            raise NabnError(
                f"method {spec.method!r} asks for the calibration set {spec.batches!r}, but calibration_batches is a "
                f"single set; give a mapping of names to sets"
            )
        return None, _check_batches("calibration_batches", calibration_batches)
    names = [str(name) for name in calibration_batches]
    suiting = suiting_set(method)
    if spec.batches is not None:
        name = spec.batches
    elif len(names) == 1:
        name = names[0]
    elif suiting in names:
        name = suiting
    else:
        raise NabnError(
            f"method {spec.method!r} must say which calibration set it takes, one of {names}: "
            f'MethodSpec({spec.method!r}, batches="..."); or call the set that suits it {suiting!r}'
        )
    if name not in calibration_batches:
        raise NabnError(
            f"method {spec.method!r} asks for the calibration set {name!r}{suggestion(name, names)}; known: {names}"
        )
    return name, _check_batches(f"calibration_batches[{name!r}]", calibration_batches[name])


def _range_batches(calibration_batches: CalibrationBatches | None) -> Iterable[Any] | None:
    if not isinstance(calibration_batches, Mapping):
        return calibration_batches
    first = next(iter(calibration_batches.values()), None)
    return calibration_batches.get(PLAIN, first)


def has_input_ranges(rpu_config: Any) -> bool:
    """Whether a configuration has static input ranges, which must be set from images."""
    settings = getattr(getattr(rpu_config, "pre_post", None), "input_range", None)
    return bool(getattr(settings, "enable", False))


def _check_batches(field: str, batches: object) -> Iterable[Any]:
    if isinstance(batches, (str, torch.Tensor)) or not isinstance(batches, Iterable):
        raise NabnError(f"{field} must be an iterable of batches (a list, a DataLoader), got {type(batches).__name__}")
    if isinstance(batches, Sized) and len(batches) == 0:
        raise NabnError(f"{field} must hold at least one batch, got none")
    return batches


def _refuse_one_shot(passes: list[Iterable[Any] | None]) -> None:
    for batches in passes:
        # A second `for` over an iterator would find nothing.
        if isinstance(batches, Iterator) and (times := sum(other is batches for other in passes)) > 1:
            raise NabnError(
                f"calibration_batches must start anew each time (a list, a DataLoader), got a "
                f"{type(batches).__name__}, which gives its batches only once; this evaluation needs them {times} times"
            )
