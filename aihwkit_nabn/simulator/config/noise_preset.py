"""The class all presets derive from, and how one is made for a noise model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.parameters import IOParameters, MappingParameter

from aihwkit_nabn.errors import NabnError, suggestion
from aihwkit_nabn.noise import argument_names
from aihwkit_nabn.simulator.config.io_options import (
    forward_options,
    forward_parameters,
    has_forward_options,
    pre_post_parameters,
)
from aihwkit_nabn.simulator.config.rpu_config import NoiseAwareRPUConfig, columnwise_mapping, weight_mapping

_CONFIG_FIELDS = tuple(item.name for item in fields(NoiseAwareRPUConfig) if item.init)
#: Fields about how weights lie on tiles and are read, which `NoiseAwareRPUConfig` explains and checks.
MAPPING_OPTIONS = ("replicate_rows", "output_range")
_MAIN_FIELDS: dict[str, tuple[type, bool]] = {
    # name: (type, whether None is allowed)
    "forward": (IOParameters, False),
    "mapping": (MappingParameter, False),
    "drift_compensation": (BaseDriftCompensation, True),
}


class NoisePreset(NoiseAwareRPUConfig):
    """Base of the presets: a `NoiseAwareRPUConfig` built from its noise model's own arguments.

    Args:
        **options: Arguments of the noise model; the forward options (`io_options`): ``inp_bits``, ``inp_bound``,
            ``out_bits``, ``out_bound``, ``out_noise``, ``w_noise``, ``w_noise_type``, ``ir_drop``,
            ``input_range``; the mapping options ``replicate_rows`` and ``output_range``; ``forward``, ``mapping`` and
            ``drift_compensation`` in place of the preset's; any other field of `NoiseAwareRPUConfig`.

    With a forward option the matrix-vector product is no longer perfect, and each output column is scaled to the
    conductance range, in which those options are given.

    Raises:
        NabnError: an option is unknown or has a value that is not allowed.
    """

    noise_name: ClassVar[str] = ""
    noise_class: ClassVar[type[BaseNoiseModel]]
    forward_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        known = argument_names(self.noise_class)
        self._check(options, known)
        forward = {name: options.pop(name) for name in forward_options() if name in options}
        if "forward" in options and has_forward_options({**forward, "input_range": None}):
            given = next(name for name in forward if name != "input_range" and forward[name] is not None)
            raise NabnError(f"forward already says {given}; give one of the two to {type(self).__name__}")
        forward = {**self.forward_defaults, **forward}
        options.setdefault("forward", forward_parameters(forward))
        options.setdefault("pre_post", pre_post_parameters(forward))
        noise_options = {name: options.pop(name) for name in known if name in options}
        if noise_options or "noise_model" not in options:
            options["noise_model"] = self.noise_class(**noise_options)
        # A plain aihwkit noise model says nothing of itself: all of aihwkit's work in conductance and drift.
        model = options["noise_model"]
        if "mapping" not in options:
            columnwise = getattr(model, "columnwise_mapping", True) or has_forward_options(forward)
            options["mapping"] = columnwise_mapping() if columnwise else weight_mapping()
        if "drift_compensation" not in options and getattr(model, "drifts", True):
            options["drift_compensation"] = GlobalDriftCompensation()
        super().__init__(**options)

    def _check(self, options: Mapping[str, Any], known: list[str]) -> None:
        for name in options:
            if name not in known and name not in _CONFIG_FIELDS and name not in forward_options():
                names = [*known, *_MAIN_FIELDS, *forward_options(), *MAPPING_OPTIONS]
                raise NabnError(
                    f"{type(self).__name__} has no option {name!r}{suggestion(name, names)}; "
                    f"allowed: {', '.join(names)}"
                )
        for name, (expected, optional) in _MAIN_FIELDS.items():
            value = options.get(name)
            if name in options and not isinstance(value, expected) and not (optional and value is None):
                allowed = f"an instance of {expected.__name__}" + (" or None" if optional else "")
                raise NabnError(f"{name} must be {allowed}, got {value!r}")


def make_preset(
    name: str,
    noise_class: type[BaseNoiseModel],
    *,
    module: str,
    class_name: str | None = None,
    doc: str | None = None,
    forward_defaults: Mapping[str, Any] | None = None,
) -> type[NoisePreset]:
    """Return a new preset class, its options the arguments of a noise model.

    `module` is where pickle finds the class again, `forward_defaults` are forward options that are on unless others are
    given. The class is named and described after the noise model by default.

    Raises:
        NabnError: an argument of the noise model has the name of something else that a preset takes.
    """
    clash = sorted(set(argument_names(noise_class)) & {*_CONFIG_FIELDS, *forward_options()})
    if clash:
        kind = "a field of RPU configs" if clash[0] in _CONFIG_FIELDS else "a forward option of all presets"
        raise NabnError(f"noise model {name!r} cannot have a preset: its argument {clash[0]!r} is {kind}")
    said = f"Perfect matrix-vector products on weights with {noise_class.__name__}.\n\n"
    preset: type[NoisePreset] = type(
        class_name or f"{noise_class.__name__}Preset",
        (NoisePreset,),
        {
            "__module__": module,
            "__doc__": doc or said + (inspect.getdoc(noise_class) or ""),
            "noise_name": name,
            "noise_class": noise_class,
            "forward_defaults": dict(forward_defaults or {}),
        },
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = inspect.signature(noise_class).parameters
    parameters = [taken[argument].replace(kind=keyword) for argument in argument_names(noise_class)]
    parameters += [inspect.Parameter(option, keyword, default=...) for option in _MAIN_FIELDS]
    for option in forward_options():
        parameters.append(inspect.Parameter(option, keyword, default=preset.forward_defaults.get(option)))
    parameters += [inspect.Parameter(option, keyword, default=False) for option in MAPPING_OPTIONS]
    preset.__signature__ = inspect.Signature(parameters)
    return preset
