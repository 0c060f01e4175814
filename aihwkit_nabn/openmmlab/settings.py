"""Settings in configs: checked and turned into the package's own objects before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from aihwkit.simulator.parameters.base import RPUConfigBase

from aihwkit_nabn.calibration.method import CALIBRATION_METHODS, DEFAULT_METHOD, CalibrationMethod, build_method
from aihwkit_nabn.chip import parse_time
from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, method_spec, suiting_set
from aihwkit_nabn.evaluation.scenario import scenarios_over_times
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.simulator import build_preset, get_preset, parse_preset

PIPELINES = {"test": PLAIN, "train": AUGMENTED}
"""Names of the pipelines in configs, and of the calibration sets that come out of them."""


def build_rpu_config(setting: object) -> tuple[str, RPUConfigBase]:
    """Return an RPU config and its name for tables.

    Args:
        setting: ``dict(type='PCMPreset', ...)`` with the preset's options, the command line's form
            (``'gaussian:sigma=0.06'``, ``'pcm+stuck:p_off=0.01'``), or a config object. Several effects on one chip
            are ``dict(type='ComposedPreset', effects=[dict(type='PCMPreset'), dict(type='StuckDevicesPreset')])``.

    Raises:
        UnknownNameError: there is no such preset.
        NabnError: an option is unknown or has a value that is not allowed, or `setting` is none of these.
    """
    if isinstance(setting, RPUConfigBase):
        return type(setting).__name__, setting
    if isinstance(setting, str):
        return setting, parse_preset(setting)
    if not isinstance(setting, Mapping) or not isinstance(setting.get("type"), str):
        raise NabnError(f"rpu_config must be dict(type='PRESET', ...) such as dict(type='PCMPreset'), got {setting!r}")
    options = {key: value for key, value in setting.items() if key != "type"}
    if "noise_model" in options:
        raise NabnError("rpu_config names its noise model by its preset; give type='PRESET' and the model's arguments")
    return _shown(get_preset(setting["type"]).noise_name, options), build_preset(setting["type"], **options)


def _shown(name: str, options: Mapping[str, Any]) -> str:
    """Return a setting as the command line would have it, for tables."""
    effects = options.get("effects")
    if not isinstance(effects, Sequence) or isinstance(effects, str):
        shown = ",".join(f"{key}={value}" for key, value in options.items())
        return f"{name}:{shown}" if shown else name
    parts = [effect if isinstance(effect, Mapping) else {"type": effect} for effect in effects]
    texts = [_shown(_plain_type(part.get("type")), {k: v for k, v in part.items() if k != "type"}) for part in parts]
    rest = {key: value for key, value in options.items() if key != "effects"}
    return _shown("+".join(texts), rest)


def _plain_type(effect: object) -> str:
    return get_preset(effect).noise_name if isinstance(effect, str) else str(effect)


def build_scenarios(rpu_config: object, t_inference: object) -> list[Scenario]:
    """Return one scenario per noise setting and time; either may be one or a list.

    Raises:
        NabnError: an empty list, or an entry that is not allowed.
    """
    noises = [build_rpu_config(entry) for entry in as_list("rpu_config", rpu_config)]
    seconds = [parse_time(entry) for entry in as_list("t_inference", t_inference)]
    return scenarios_over_times(noises, seconds)


class Methods(NamedTuple):
    """Methods as a config has them.

    Attributes:
        specs: The methods, each naming its calibration set.
        sets: By name of a set, which images it is made of (``"plain"`` or ``"augmented"``), and the transforms that the
            digital model's images skip.
    """

    specs: list[MethodSpec]
    sets: dict[str, tuple[str, tuple[str, ...]]]


def build_methods(methods: object, pipeline: str | None) -> Methods:
    """Return the methods, each with the calibration set that suits it (or that of `pipeline`).

    Args:
        methods: Names, or ``dict(method=NAME, pipeline='train'|'test', label=..., reference_skips=..., ...)`` with the
            method's options. ``reference_skips`` is a type of transform or a list, such as ``'CompressJPEG'``, that the
            digital model's images do not go through: the chip is calibrated towards what that makes of clean images.
        pipeline: For methods that do not say; None: the training pipeline for those that replace statistics, the test
            pipeline for the others.

    Raises:
        UnknownNameError: there is no such method.
        NabnError: an option is not allowed.
    """
    found = Methods([], {})
    for entry in as_list("methods", methods):
        options = dict(entry) if isinstance(entry, Mapping) else {"method": entry}
        name, label, skips = (options.pop(key, None) for key in ("method", "label", "reference_skips"))
        chosen = check_pipeline(options.pop("pipeline", pipeline))
        spec = method_spec(name, options, label=label)
        if spec.method != UNCALIBRATED:
            method = CALIBRATION_METHODS.get(spec.method)
            skips = check_skips(method, skips or ())
            if spec.batches is not None:
                images = images_of(method, chosen)
                name = f"{images}, reference without {' '.join(skips)}" if skips else images
                found.sets[name] = images, skips
                spec = replace(spec, batches=name)
        found.specs.append(spec)
    return found


def build_calibration(calibration: object) -> tuple[CalibrationMethod | None, dict[str, Any]]:
    """Return the one method a chip is calibrated with and how, None for a chip as programmed.

    Args:
        calibration: None or False: as programmed; True: the default method; or ``dict(method=NAME, max_samples=256,
            batch_size=..., pipeline=..., reference_skips=..., ...)`` with the method's options, each of them optional.

    Raises:
        UnknownNameError: there is no such method.
        NabnError: it is of another form, or an entry is not allowed.
    """
    if calibration is None or calibration is False:
        return None, {}
    rest = {} if calibration is True else calibration
    name = rest.get("method", DEFAULT_METHOD) if isinstance(rest, Mapping) else None
    if not isinstance(rest, Mapping) or not isinstance(name, str):
        raise NabnError(
            f"calibration must be None, True (method {DEFAULT_METHOD!r}) or dict(method='paired', max_samples=256), "
            f"both optional, got {calibration!r}"
        )
    rest = {key: value for key, value in rest.items() if key != "method"}
    options: dict[str, Any] = {
        "max_samples": check_samples("calibration.max_samples", rest.pop("max_samples", 256)),
        "batch_size": check_samples("calibration.batch_size", rest.pop("batch_size", None)),
        "pipeline": check_pipeline(rest.pop("pipeline", None)),
    }
    given = rest.pop("reference_skips", ())
    if name == UNCALIBRATED and not rest:
        return None, options
    method = build_method(name, **rest)
    skips = check_skips(method, given)
    options |= {"reference_skips": skips} if skips else {}
    return method, options | {"method": tuple(sorted(rest.items()))}


def images_of(method: CalibrationMethod | type[CalibrationMethod], pipeline: str | None) -> str:
    """Return which images a method calibrates with: those of a pipeline, or None: those that suit it."""
    return suiting_set(method) if pipeline is None else PIPELINES[pipeline]


def check_skips(method: CalibrationMethod | type[CalibrationMethod], skips: object) -> tuple[str, ...]:
    """Return the types of transforms that the reference's images skip, as a tuple.

    Raises:
        NabnError: they are no names, or the method has no reference.
    """
    names = (skips,) if isinstance(skips, str) else skips
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise NabnError(
            f"reference_skips must be a type of transform, such as 'CompressJPEG', or a list, got {skips!r}"
        )
    if names and not method.needs_reference:
        raise NabnError(f"reference_skips is for methods that compare with the digital model, not for {method.name!r}")
    return tuple(names)


def check_pipeline(pipeline: object) -> str | None:
    """Return `pipeline` if it is None or the name of one, else raise a `NabnError`."""
    if pipeline is not None and pipeline not in PIPELINES:
        raise NabnError(f"pipeline must be 'train', 'test' or None (what suits the method), got {pipeline!r}")
    return pipeline


def check_samples(field: str, value: object) -> int | None:
    """Return a number of samples or None; raise a `NabnError` if it is neither."""
    return None if value is None else check_count(field, value, minimum=1)


def as_list(field: str, value: object) -> Sequence[Any]:
    """Return a list of one or of many.

    Raises:
        NabnError: the list is empty.
    """
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise NabnError(f"{field} must name at least one, got an empty list")
    return entries
