"""What is tried on a chip: a calibration method with its options, and with the calibration images that suit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aihwkit_nabn.calibration import CALIBRATION_METHODS, CalibrationMethod
from aihwkit_nabn.calibration.method import build_method, unknown_method
from aihwkit_nabn.errors import NabnError, name_with_options
from aihwkit_nabn.evaluation.scenario import check_label
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED
from aihwkit_nabn.simulator.config.text import parse_value

AUGMENTED = "augmented"
"""Name of the calibration set, among several, for methods that replace statistics: with the training augmentation."""

PLAIN = "plain"
"""Name of the calibration set, among several, for the other methods: images as at test time."""

ALL = "all"
"""Stands for every registered method where methods are given as text."""


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
        if name_with_options(self.method)[0] in CALIBRATION_METHODS:
            raise unknown_method(self.method, (UNCALIBRATED,))
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


def suiting_set(method: CalibrationMethod | type[CalibrationMethod]) -> str:
    """Return the name of the calibration set that suits a method.

    Trained statistics contain the training augmentation, so methods that replace them calibrate on images that went
    through it. Methods that compare with the digital model on the same images take them as they are at test time.
    """
    return AUGMENTED if method.replaces_statistics else PLAIN


def method_spec(
    name: object,
    options: Mapping[str, Any] | None = None,
    *,
    batches: str | None = None,
    label: str | None = None,
    known: Sequence[str] = (UNCALIBRATED,),
) -> MethodSpec:
    """Return a method, its options checked, with a calibration set if it takes one: by default the one that suits.

    The names in `known` may stand in its place; messages list them.

    Raises:
        UnknownNameError: the name is not registered.
        NabnError: an option is unknown or has a value that is not allowed; or a set for a method that takes none.
    """
    if name == UNCALIBRATED:
        return MethodSpec(UNCALIBRATED, batches=batches, label=label, options=options or {})
    if not isinstance(name, str) or name not in CALIBRATION_METHODS:
        raise unknown_method(name, known)
    method = build_method(name, **(options or {}))
    if method.needs_batches:
        batches = batches or suiting_set(method)
    elif batches is not None:
        raise NabnError(f"method {name!r} takes no calibration images, got {batches!r}")
    return MethodSpec(name, batches=batches, label=label, options=options or {})


def method_specs(names: Sequence[str]) -> list[MethodSpec]:
    """Return methods from text, each with the calibration set that suits it.

    Args:
        names: Registered names, options behind a colon: ``"distill:steps=20"``; an entry such as ``"lr=0.01"`` is one
            more option of the method before it, as a list separated by commas has it. ``"none"`` is the chip as
            programmed, ``"all"`` every registered method.

    Raises:
        NabnError: there are no names, or an option is malformed, unknown or has a value that is not allowed.
        UnknownNameError: a name is not registered.
    """
    if not names:
        raise NabnError(f"methods must name at least one of {UNCALIBRATED}, {', '.join(CALIBRATION_METHODS.names())}")
    # Those that work on statistics first, then those that compare with the digital model.
    everything = sorted(CALIBRATION_METHODS.names(), key=lambda name: CALIBRATION_METHODS.get(name).needs_reference)
    specs = [MethodSpec(UNCALIBRATED)]
    for given, texts in _with_options(names):
        if given in (ALL, UNCALIBRATED) and texts:
            raise NabnError(f"method {given!r} takes no options, got {next(iter(texts))!r}")
        for name in everything if given == ALL else [given]:
            label = f"{name} ({', '.join('='.join(item) for item in texts.items())})" if texts else None
            if name == UNCALIBRATED or any((spec.method, spec.label) == (name, label) for spec in specs):
                continue
            options = {option: parse_value(option, text) for option, text in texts.items()}
            specs.append(method_spec(name, options, label=label, known=(UNCALIBRATED, ALL)))
    return specs


def _with_options(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return each method's name with its options, still as text."""
    methods: list[tuple[str, dict[str, str]]] = []
    may_go_on = False
    for item in names:
        name, colon, option = (part.strip() for part in item.partition(":"))
        if may_go_on and not colon and "=" in item:
            option = item
        else:
            methods.append((name, {}))
            may_go_on = bool(colon)
        if may_go_on:
            key, equals, value = (part.strip() for part in option.partition("="))
            if not (key and equals and value):
                raise NabnError(f"malformed option {option!r} of method {methods[-1][0]!r}: expected NAME:OPTION=VALUE")
            if key in methods[-1][1]:
                raise NabnError(f"option {key!r} of method {methods[-1][0]!r} is given twice")
            methods[-1][1][key] = value
    return methods


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
