"""Every preset's options for the matrix-vector product, as aihwkit's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from inspect import isabstract
from typing import Any

from aihwkit.simulator.parameters import InputRangeParameter, IOParameters, PrePostProcessingParameter
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType

from aihwkit_nabn.errors import NabnError, check_count, check_number, suggestion
from aihwkit_nabn.noise import NOISE_MODELS, argument_names
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.simulator.config.rpu_config import NoiseAwareRPUConfig, perfect_forward
from aihwkit_nabn.simulator.product.physics.effect import EffectParameters, ReadoutEffect

#: Output range that goes with a converter whose `out_bound` is not given: that of Rasch et al. 2023.
STANDARD_OUT_BOUND = 10.0

READ_NOISE_TYPES = {"pcm_read": WeightNoiseType.PCM_READ, "additive_constant": WeightNoiseType.ADDITIVE_CONSTANT}

#: Name of each option and what it means; None always stands for ideal, or for what is the default.
FORWARD_OPTIONS = {
    "inp_bits": "resolution of the digital-to-analog converter: 2^bits - 2 steps over its range; None: ideal",
    "inp_bound": "range of its input, in units of the input range, or of each vector's largest entry; None: 1",
    "out_bits": "resolution of the analog-to-digital converter: 2^bits - 2 steps over its range; None: ideal",
    "out_bound": "range of the output, in units of one input at full scale times the largest weight; "
    "None: 10 where out_bits is given, unlimited otherwise",
    "out_noise": "standard deviation of additive noise on each output, in the same units",
    "w_noise": "standard deviation of the weights' read noise, drawn anew in every product, as a fraction of the "
    "largest weight",
    "w_noise_type": "'pcm_read' (grows with the conductance, the default) or 'additive_constant'",
    "ir_drop": "factor on the voltage drop along the wires; 1 is the physical value",
    "input_range": "static input range per tile, set from images (calibrate_input_ranges), or its initial value; "
    "false: each input vector is scaled by its largest entry instead, many times slower",
}

# Not given in units of the input's full scale.
_SCALE_FREE = ("w_noise", "w_noise_type", "input_range")


def _check_effect(name: str, effect: type[ReadoutEffect]) -> None:
    if not (isinstance(effect, type) and issubclass(effect, ReadoutEffect)) or isabstract(effect):
        raise NabnError(f"readout effect {name!r} must derive from ReadoutEffect and define apply, got {effect!r}")
    taken = [*FORWARD_OPTIONS, *(item.name for item in fields(NoiseAwareRPUConfig))]
    if name in taken or any(name in argument_names(NOISE_MODELS.get(model)) for model in NOISE_MODELS):
        raise NabnError(f"readout effect {name!r} cannot be an option of presets: they already have one of this name")


READOUT_EFFECTS: Registry[type[ReadoutEffect]] = Registry("readout effect", check=_check_effect)


def register_readout_effect(name: str) -> Callable[[type[ReadoutEffect]], type[ReadoutEffect]]:
    """Return a class decorator that makes a readout effect an option of all presets.

    ``name=VALUE`` builds it of a value, its first field, or of a mapping of its fields. The name is lower_snake_case.

    Raises:
        NabnError: the name is malformed, or an option has it; or the class is no `ReadoutEffect`.
    """

    def enter(effect: type[ReadoutEffect]) -> type[ReadoutEffect]:
        READOUT_EFFECTS.register(name)(effect).name = name
        return effect

    return enter


def forward_options() -> list[str]:
    """Return the names of `FORWARD_OPTIONS` and of the registered readout effects."""
    return [*FORWARD_OPTIONS, *READOUT_EFFECTS]


def has_forward_options(options: Mapping[str, Any]) -> bool:
    """Whether any of `forward_options` is among the options with a value that is not the ideal."""
    return any(options.get(name) is not None and options[name] is not False for name in forward_options())


def forward_parameters(options: Mapping[str, Any]) -> IOParameters:
    """Return aihwkit's parameters of the product; only what is named is not ideal.

    Inputs are scaled to the converter's range by a static input range, or with ``input_range=False`` by each vector's
    largest entry (aihwkit's ``ABS_MAX``), which computes convolutions many times slower. Read noise alone grows with
    the inputs and needs neither. Outputs beyond the range are clipped (no bound management).

    Raises:
        NabnError: an option has a value that is not allowed, or there is a type of read noise but no read noise.
    """
    _check_input_range(options.get("input_range"))
    if not has_forward_options(options):
        return perfect_forward()
    static = has_input_range(options)
    out_bits, out_bound = options.get("out_bits"), options.get("out_bound")
    if out_bound is None:
        out_bound = 0.0 if out_bits is None else STANDARD_OUT_BOUND  # aihwkit takes 0 for unlimited
    else:
        out_bound = check_number("out_bound", out_bound, exclusive_minimum=0.0)
    w_noise, w_noise_type = _read_noise(options)
    if static:  # as aihwkit's crossbar preset has it: a constant of 1 leaves to the input range what it scales
        management = NoiseManagementType.CONSTANT
    elif not _needs_scale(options):
        management = NoiseManagementType.NONE
    else:
        management = NoiseManagementType.ABS_MAX
    full_range = 0.0 if management == NoiseManagementType.NONE else 1.0  # unscaled inputs have no bound
    effects = tuple(_effect(name, options[name]) for name in READOUT_EFFECTS if options.get(name) not in (None, False))
    return (partial(EffectParameters, effects=effects) if effects else IOParameters)(
        is_perfect=False,
        inp_bound=_number(options, "inp_bound", full_range, exclusive_minimum=0.0),
        inp_res=_resolution("inp_bits", options.get("inp_bits")),
        inp_noise=0.0,
        out_bound=out_bound,
        out_res=_resolution("out_bits", out_bits),
        out_noise=_number(options, "out_noise", 0.0, minimum=0.0),
        w_noise=w_noise,
        w_noise_type=w_noise_type,
        ir_drop=_number(options, "ir_drop", 0.0, minimum=0.0),
        bound_management=BoundManagementType.NONE,
        noise_management=management,
        nm_thres=1.0 if static else 0.0,
    )


def has_input_range(options: Mapping[str, Any]) -> bool:
    """Whether the options ask for a static input range, or name something that needs one and do not rule it out."""
    value = options.get("input_range")
    return _needs_scale(options) if value is None else value is not False


def _needs_scale(options: Mapping[str, Any]) -> bool:
    return any(options.get(name) is not None for name in forward_options() if name not in _SCALE_FREE)


def pre_post_parameters(options: Mapping[str, Any]) -> PrePostProcessingParameter:
    """Return aihwkit's parameters of the static input range, for options that `forward_parameters` has checked."""
    value = options.get("input_range")
    start = {} if value is None or isinstance(value, bool) else {"init_value": float(value)}
    return PrePostProcessingParameter(input_range=InputRangeParameter(enable=has_input_range(options), **start))


def _check_input_range(value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    try:
        check_number("input_range", value, exclusive_minimum=0.0)
    except NabnError as error:
        raise NabnError(f"input_range must be true, false, None or a finite number > 0, got {value!r}") from error


def _effect(name: str, value: object) -> ReadoutEffect:
    """Build a readout effect of its first field, or of a mapping of its fields."""
    effect: Any = READOUT_EFFECTS.get(name)
    try:
        made: ReadoutEffect = effect(**value) if isinstance(value, Mapping) else effect(value)
    except TypeError as error:
        raise NabnError(f"{name} must be a value or the fields of {effect.__name__}, got {value!r}: {error}") from error
    return made


def _number(options: Mapping[str, Any], name: str, default: float, **limits: Any) -> float:
    value = options.get(name)
    return default if value is None else check_number(name, value, **limits)


def _resolution(name: str, bits: object) -> float:
    if bits is None:
        return -1.0  # aihwkit takes it for infinitely fine
    if check_count(name, bits, minimum=2) > 24:  # finer than float32
        raise NabnError(f"{name} must be an integer from 2 to 24 or None, got {bits!r}")
    return 1.0 / (2 ** int(bits) - 2)  # type: ignore[call-overload]


def _read_noise(options: Mapping[str, Any]) -> tuple[float, WeightNoiseType]:
    w_noise, kind = options.get("w_noise"), options.get("w_noise_type")
    if kind is not None:
        if w_noise is None:
            raise NabnError(f"w_noise_type={kind!r} says how read noise grows; give its strength, w_noise, too")
        if str(kind).lower() not in READ_NOISE_TYPES:
            allowed = " or ".join(repr(name) for name in READ_NOISE_TYPES)
            raise NabnError(f"w_noise_type must be {allowed}, got {kind!r}{suggestion(kind, READ_NOISE_TYPES)}")
    strength = 0.0 if w_noise is None else check_number("w_noise", w_noise, minimum=0.0)
    if strength == 0.0:
        return 0.0, WeightNoiseType.NONE
    return strength, READ_NOISE_TYPES[str(kind or "pcm_read").lower()]
