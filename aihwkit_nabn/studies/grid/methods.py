"""Calibration methods in a sweep, and what is done along a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.errors import NabnError, UnknownNameError, check_count
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, method_spec
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED
from aihwkit_nabn.workloads._checks import check_choice, check_list, check_mapping, check_positive, check_text, short

UNCALIBRATED_LABEL = "uncalibrated"
DIGITAL_LABEL = "digital, same images"
_REFERENCES = ("same", "clean")


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A calibration method with its options.

    Attributes:
        method: Registered name, or ``"none"``.
        label: How tables call it.
        images: ``"plain"`` or ``"augmented"`` calibration images; None where it takes none.
        clean_reference: Whether the reference sees the clean image and the chip its compressed twin.
        options: Options of the method, as pairs.
    """

    method: str
    label: str
    images: str | None = None
    clean_reference: bool = False
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrackingEntry:
    """What is done along a stream.

    Attributes:
        method: Registered name, or ``"none"``.
        label: How tables call it.
        at: Positions in the stream, in images, before which the chip is calibrated.
        images: As in `MethodEntry`.
        options: As in `MethodEntry`.
    """

    method: str
    label: str
    at: tuple[int, ...] = ()
    images: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


def read_method(field: str, entry: object) -> MethodEntry:
    """Check an entry of ``methods``: a name, or a mapping with ``method`` and more.

    Raises:
        NabnError: anything in it that is not allowed.
    """
    known = ["method", "label", "images", "reference", "options"]
    name, label, images, options, given = _read_common(field, entry, known)
    clean = check_choice(f"reference of {name}", given.get("reference", "same"), _REFERENCES) == "clean"
    if clean and not (name != UNCALIBRATED and CALIBRATION_METHODS.get(name).needs_reference):
        raise NabnError(f"reference: clean is for methods that compare with the digital model, not for {name!r}")
    default = UNCALIBRATED_LABEL if name == UNCALIBRATED else name
    label = label or (f"{default}, clean reference" if clean else default)
    return MethodEntry(method=name, label=label, images=images, clean_reference=clean, options=options)


def read_tracking(field: str, entry: object, *, images: int, batch: int) -> TrackingEntry:
    """Check an entry of a stream's ``tracking``: a name, or a mapping with ``method``, ``at`` or ``every``.

    Raises:
        NabnError: anything in it that is not allowed.
    """
    known = ["method", "label", "images", "options", "at", "every"]
    name, label, kind, options, given = _read_common(field, entry, known)
    if "at" in given and "every" in given:
        raise NabnError(f"tracking {name!r} has both at and every; give one")
    at: tuple[int, ...] = (0,)
    default = name
    if name == UNCALIBRATED:
        at, default = (), UNCALIBRATED_LABEL
        if "at" in given or "every" in given:
            raise NabnError(f"tracking {UNCALIBRATED!r} does nothing; it takes neither at nor every")
    elif "every" in given:
        every = check_positive(f"every of {name}", given["every"])
        at, default = tuple(range(0, images, every)), f"{name}, every {every}"
    elif "at" in given:
        at = tuple(sorted(check_list(f"at of {name}", given["at"], check_count)))
        default = f"{name}, {len(at)} times" if len(at) > 1 else name
    if name != UNCALIBRATED and not CALIBRATION_METHODS.get(name).needs_batches and at != (0,):
        raise NabnError(f"tracking {name!r} goes on by itself; it takes neither at nor every")
    for position in at:
        if position >= images or position % batch:
            raise NabnError(
                f"tracking {name!r} must calibrate at multiples of batch = {batch} below {images}, got {position}"
            )
    if name != UNCALIBRATED and at == (0,) and CALIBRATION_METHODS.get(name).needs_batches:
        default = f"{name}, once"
    return TrackingEntry(method=name, label=label or default, at=at, images=kind, options=options)


def _read_common(
    field: str, entry: object, known: list[str]
) -> tuple[str, str | None, str | None, tuple[tuple[str, Any], ...], dict[str, Any]]:
    if entry is None:  # YAML's ~, which people write for none
        entry = UNCALIBRATED
    given = (
        {"method": entry} if isinstance(entry, str) else check_mapping(f"an entry of {field}", entry, known, ["method"])
    )
    name = given["method"]
    names = [UNCALIBRATED, *CALIBRATION_METHODS.names()]
    if not isinstance(name, str) or name not in names:
        raise UnknownNameError("calibration method", name, names)
    label = None if given.get("label") is None else check_text(f"label of {name}", given["label"])
    if label in (DIGITAL, DIGITAL_LABEL):
        raise NabnError(f"label of {name} must not be {label!r}: that is the digital model's own")
    options = given.get("options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise NabnError(f"options of {name} must be a mapping of names to values, got {short(options)}")
    if name == UNCALIBRATED:
        for key in ("options", "images"):
            if given.get(key):
                raise NabnError(f"method {UNCALIBRATED!r} does nothing and takes no {key}")
        return name, label, None, (), given
    images = given.get("images")
    if images is not None:
        check_choice(f"images of {name}", images, (PLAIN, AUGMENTED))
    return name, label, method_spec(name, options, batches=images).batches, tuple(sorted(options.items())), given
