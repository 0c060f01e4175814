"""What is evaluated: a noise setting at a time after programming, and a calibration method with its images."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

from aihwkit.simulator.parameters.base import RPUConfigBase

from aihwkit_nabn.chip import format_time, parse_time
from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.simulator.config.checks import check_rpu_config

UNCALIBRATED = "none"
"""The method that does nothing; every evaluation contains it."""

DIGITAL = "digital"
"""Label of the digital model's row."""


@dataclass(frozen=True)
class Scenario:
    """A noise setting at a time after programming.

    Args:
        name: How tables call it; unique within an evaluation.
        rpu_config: The aihwkit RPU config. A copy is kept, so changing the config later does not change the scenario.
        t_inference: Seconds after programming, >= 0, or text such as ``"1d"``, kept as seconds.
        group: Scenarios of one group share a panel of a plot.
        strength: Where the scenario stands on a plot's horizontal axis, e.g. the noise's standard deviation.

    Raises:
        NabnError: a field has a value that it cannot have.

    Example:
        >>> from aihwkit.simulator.configs import TorchInferenceRPUConfig
        >>> Scenario(name="PCM, 1 day", rpu_config=TorchInferenceRPUConfig(), t_inference="1d").t_inference
        86400.0
    """

    name: str
    rpu_config: RPUConfigBase = field(repr=False, hash=False)
    _: KW_ONLY
    t_inference: float | str = 0.0
    group: str | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        check_label("name", self.name)
        check_rpu_config(f"rpu_config of scenario {self.name!r}", self.rpu_config)
        if self.group is not None:
            check_label("group", self.group)
        time = parse_time(self.t_inference) if isinstance(self.t_inference, str) else self.t_inference
        # A frozen dataclass lets its own __post_init__ write only this way.
        object.__setattr__(self, "t_inference", check_number("t_inference", time, minimum=0.0))
        if self.strength is not None:
            object.__setattr__(self, "strength", check_number("strength", self.strength))
        object.__setattr__(self, "rpu_config", copy.deepcopy(self.rpu_config))


@dataclass(frozen=True)
class MethodSpec:
    """A calibration method, the calibration set it takes, and how tables call it.

    Args:
        method: Registered name, or ``"none"`` for the chip as programmed.
        batches: Name of the calibration set, where several are given to `evaluate`.
        label: How tables and records call it. Default: the method's name, followed by the calibration set's where the
            same method is compared on several; "uncalibrated" for ``"none"``.
        options: Keyword arguments of the method.

    Raises:
        NabnError: a field has a value that it cannot have.

    Example:
        >>> MethodSpec("population", batches="augmented")
        MethodSpec(method='population', batches='augmented', label=None, options={})
    """

    method: str
    batches: str | None = field(default=None, kw_only=True)
    label: str | None = field(default=None, kw_only=True)
    options: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        check_label("method", self.method)
        for name in ("batches", "label"):
            if getattr(self, name) is not None:
                check_label(name, getattr(self, name))
        if self.label == DIGITAL:
            raise NabnError(f"label must not be {DIGITAL!r}: the digital model's own row has that name")
        if not isinstance(self.options, Mapping) or not all(isinstance(key, str) for key in self.options):
            raise NabnError(f"options must be a mapping of argument names to values, got {self.options!r}")
        if self.method == UNCALIBRATED and (self.options or self.batches is not None):
            raise NabnError(f"method {UNCALIBRATED!r} does nothing and takes neither batches nor options")
        object.__setattr__(self, "options", dict(self.options))


def check_label(field_name: str, value: object) -> str:
    """Return `value` if it is non-empty text on one line.

    Raises:
        NabnError: it is anything else.
    """
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise NabnError(f"{field_name} must be non-empty text on one line, got {value!r}")
    return value


def scenarios_over_times(noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[Scenario]:
    """Return all scenarios of `scenarios_by_noise`, one after the other."""
    return [scenario for scenarios in scenarios_by_noise(noises, seconds) for scenario in scenarios]


def scenarios_by_noise(noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[list[Scenario]]:
    """Return each noise setting's scenarios, one per time, grouped so that a plot's curves belong together.

    A setting whose weights do not change with time is there once, at the first time.

    Args:
        noises: Each setting as ``NAME`` or ``NAME:OPTION=VALUE,...``, with its RPU config.
        seconds: Times after programming.

    Raises:
        NabnError: a time is out of range.
    """
    return [_over_times(noise, config, noises, seconds) for noise, config in noises]


def _over_times(noise: str, config: Any, noises: Sequence[tuple[str, Any]], seconds: Sequence[float]) -> list[Scenario]:
    model = config.noise_model
    times = seconds if getattr(model, "changes_with_time", True) else seconds[:1]
    # Several strengths of one model, at one time, are one curve; otherwise each setting is a curve over time.
    name, _, options = noise.partition(":")
    argument = getattr(model, "strength", None)
    alike = [other for other, _ in noises if other.partition(":")[0] == name]
    strength = getattr(model, argument, None) if argument and len(alike) > 1 and len(times) == 1 else None
    rest = [option for option in options.split(",") if option and option.partition("=")[0].strip() != argument]
    moves = getattr(model, "drifts", True) or len(times) > 1
    return [
        Scenario(
            name=f"{noise}, {format_time(time)}" if moves else noise,
            rpu_config=config,
            t_inference=time,
            group=noise if strength is None else ", ".join([name, *rest]),
            strength=strength,
        )
        for time in times
    ]


def label_methods(methods: Iterable[MethodSpec | str]) -> list[MethodSpec]:
    """Return the methods as specs that all have a label of their own, the uncalibrated one added and put first.

    Raises:
        NabnError: an entry is neither a spec nor text, or two have the same label.
    """
    if isinstance(methods, (str, MethodSpec)):
        methods = [methods]
    specs = []
    for entry in methods:
        if not isinstance(entry, (str, MethodSpec)):
            raise NabnError(f"methods must hold method names or MethodSpec objects, got {entry!r}")
        specs.append(MethodSpec(entry) if isinstance(entry, str) else entry)
    if not any(spec.method == UNCALIBRATED for spec in specs):
        specs.append(MethodSpec(UNCALIBRATED))
    if sum(spec.method == UNCALIBRATED for spec in specs) > 1:
        raise NabnError(f"methods holds {UNCALIBRATED!r} more than once")
    specs.sort(key=lambda spec: spec.method != UNCALIBRATED)
    sets_of = {spec.method: {other.batches for other in specs if other.method == spec.method} for spec in specs}
    labelled = []
    for spec in specs:
        default = "uncalibrated" if spec.method == UNCALIBRATED else spec.method
        if spec.batches is not None and len(sets_of[spec.method]) > 1:
            default += f", {spec.batches}"
        labelled.append(spec if spec.label is not None else replace(spec, label=default))
    labels = [spec.label for spec in labelled]
    for label in labels:
        if labels.count(label) > 1:
            raise NabnError(f"{labels.count(label)} methods have the label {label!r}; give each a label of its own")
    return labelled


def config_key(rpu_config: RPUConfigBase) -> bytes:
    """Return bytes that are the same only for configs of the same content.

    Comparing configs with ``==`` would miss equal ones: aihwkit's drift compensation compares by identity.
    """
    try:
        return pickle.dumps(rpu_config)
    except Exception:  # whatever a config holds that cannot be pickled: then it is equal to itself alone
        return str(id(rpu_config)).encode()
