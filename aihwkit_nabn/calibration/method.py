"""What a calibration method is, and the table of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import NabnError, UnknownNameError, name_with_options, suggestion
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.simulator.config.text import parse_value

DEFAULT_METHOD = "auto"
"""The method that is taken where none is named."""


class CalibrationMethod:
    """Base of the calibration methods: one class, one file, one decorator.

    A subclass sets the attributes below, takes its options in its constructor (keywords with defaults) and writes
    `calibrate`. What it may change is in the session: ``session.batchnorms[name].set_calibrated(mean, var)`` and
    ``session.alignments[name].set(scale, offset)``. If it raises, the model is put back as it was.

    Attributes:
        summary: One line for tables and help.
        needs_reference: Whether it compares with the digital model.
        needs_batches: Whether it needs calibration batches.
        replaces_statistics: Whether it puts new statistics in the trained ones' place. Such methods want calibration
            images that went through the training augmentation, which the trained statistics contain; the others take
            images as at test time.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    needs_reference: ClassVar[bool] = False
    needs_batches: ClassVar[bool] = True
    replaces_statistics: ClassVar[bool] = False

    def calibrate(self, session: CalibrationSession) -> None:
        """Calibrate the session's chip."""
        raise NotImplementedError


def _check(name: str, method: type[CalibrationMethod]) -> None:
    if not (isinstance(method, type) and issubclass(method, CalibrationMethod)):
        raise NabnError(f"calibration method {name!r} must be a class derived from CalibrationMethod, got {method!r}")
    if method.calibrate is CalibrationMethod.calibrate:
        raise NabnError(f"calibration method {name!r}: {method.__name__} does not define calibrate(self, session)")
    options = [
        p for p in inspect.signature(method).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    required = [p.name for p in options if p.default is p.empty]
    if required:
        raise NabnError(f"calibration method {name!r}: option {required[0]!r} needs a default")
    method.name = name


CALIBRATION_METHODS: Registry[type[CalibrationMethod]] = Registry("calibration method", check=_check)


def register_calibration_method(
    name: str,
) -> Callable[[type[CalibrationMethod]], type[CalibrationMethod]]:
    """Return a class decorator that enters a `CalibrationMethod` under `name`.

    Raises:
        NabnError: the name is taken or malformed, or the class is not one.
    """
    return CALIBRATION_METHODS.register(name)


def takes_option(cls: type[CalibrationMethod], option: str) -> bool:
    """Return whether a method has an option of this name."""
    return option in inspect.signature(cls).parameters


def unknown_method(name: object, known: Iterable[str] = ()) -> UnknownNameError:
    """Return the error for a name that no method has; `known` are further ones: ``"none"`` where that is allowed."""
    hint = ""
    if name == UNCALIBRATED and name not in known:
        hint = (
            ": to leave a chip as programmed, do not calibrate it; evaluate(methods=['none', ...]) measures it that way"
        )
    alone, options = name_with_options(name)
    if alone in CALIBRATION_METHODS:
        pairs = [option.partition("=") for option in options]
        given = {key.strip(): parse_value(key, value.strip()) for key, equals, value in pairs if equals}
        keywords = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "OPTION=VALUE"
        hint = (
            f": pass options separately from the name, calibrate(..., method={alone!r}, {keywords}), "
            f"MethodSpec({alone!r}, options={given}), or in a config dict(method={alone!r}, {keywords})"
        )
    return UnknownNameError(CALIBRATION_METHODS.kind, name, [*known, *CALIBRATION_METHODS.names()], hint)


def build_method(method: str | CalibrationMethod, /, **options: Any) -> CalibrationMethod:
    """Return a method from its name and options; an instance passes through.

    Raises:
        UnknownNameError: there is no method of this name; the nearest is suggested.
        NabnError: an option is unknown or out of range.
    """
    if isinstance(method, CalibrationMethod):
        if options:
            raise NabnError(f"options {sorted(options)} go with a method's name, not with an instance")
        return method
    if not isinstance(method, str) or method not in CALIBRATION_METHODS:
        raise unknown_method(method)
    cls = CALIBRATION_METHODS.get(method)
    known = list(inspect.signature(cls).parameters)
    for option in options:
        if option not in known:
            near, allowed = suggestion(option, known), ", ".join(known) or "none"
            raise NabnError(f"method {method!r} has no option {option!r}{near}; options: {allowed}")
    return cls(**options)
