"""Ready-made configurations: every registered noise model has one, a user's too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.parameters import IOParameters, MappingParameter

from aihwkit_nabn.errors import NabnError, UnknownNameError, suggestion
from aihwkit_nabn.noise import NOISE_MODELS, argument_names
from aihwkit_nabn.simulator.config import NoiseAwareRPUConfig, columnwise_mapping, weight_mapping

_CONFIG_FIELDS = tuple(item.name for item in fields(NoiseAwareRPUConfig) if item.init)
_MAIN_FIELDS: dict[str, tuple[type, bool]] = {
    # name: (type, whether None is allowed)
    "forward": (IOParameters, False),
    "mapping": (MappingParameter, False),
    "drift_compensation": (BaseDriftCompensation, True),
}
_PRESETS: dict[str, type[NoisePreset]] = {}


class NoisePreset(NoiseAwareRPUConfig):
    """Base of the presets: a `NoiseAwareRPUConfig` built from its noise model's own arguments.

    Args:
        **options: Arguments of the noise model; ``forward``, ``mapping`` and ``drift_compensation`` in place of the
            preset's; any other field of `NoiseAwareRPUConfig`.

    Raises:
        NabnError: an option is unknown or has a value that is not allowed.
    """

    noise_name: ClassVar[str] = ""
    noise_class: ClassVar[type[BaseNoiseModel]]

    def __init__(self, **options: Any) -> None:
        known = argument_names(self.noise_class)
        for name in options:
            if name not in known and name not in _CONFIG_FIELDS:
                names = [*known, *_MAIN_FIELDS]
                raise NabnError(
                    f"{type(self).__name__} has no option {name!r}{suggestion(name, names)}; "
                    f"allowed: {', '.join(names)}"
                )
        for name, (expected, optional) in _MAIN_FIELDS.items():
            value = options.get(name)
            if name in options and not isinstance(value, expected) and not (optional and value is None):
                allowed = f"an instance of {expected.__name__}" + (" or None" if optional else "")
                raise NabnError(f"{name} must be {allowed}, got {value!r}")
        noise_options = {name: options.pop(name) for name in known if name in options}
        if noise_options or "noise_model" not in options:
            options["noise_model"] = self.noise_class(**noise_options)
        # A plain aihwkit noise model says nothing of itself: all of aihwkit's work in conductance and drift.
        if "mapping" not in options:
            columnwise = getattr(self.noise_class, "columnwise_mapping", True)
            options["mapping"] = columnwise_mapping() if columnwise else weight_mapping()
        if "drift_compensation" not in options and getattr(self.noise_class, "drifts", True):
            options["drift_compensation"] = GlobalDriftCompensation()
        super().__init__(**options)


def preset_names() -> list[str]:
    """Return the names `build_preset` and `parse_preset` take: those of the registered noise models."""
    return NOISE_MODELS.names()


def get_preset(name: str) -> type[NoisePreset]:
    """Return the preset class of a noise model.

    Args:
        name: The registered name (``"reram_wan"``), the noise class or the preset class (``"ReRAMWanPreset"``); case,
            dashes and underscores do not matter.

    Raises:
        UnknownNameError: no noise model has this name; the message suggests the nearest.
    """
    wanted = _plain(name).removesuffix("preset")
    for registered in NOISE_MODELS.names():
        noise_class = NOISE_MODELS.get(registered)
        if wanted in (_plain(registered), _plain(noise_class.__name__)):
            return _make_preset(registered, noise_class)
    raise UnknownNameError("preset", name, preset_names())


def build_preset(name: str, **options: Any) -> NoisePreset:
    """Return a configuration, e.g. ``build_preset("gaussian", sigma=0.06)``.

    Args:
        name: See `get_preset`.
        **options: See `NoisePreset`.

    Raises:
        UnknownNameError: there is no such preset.
        NabnError: an option is unknown or has a value that is not allowed.
    """
    return get_preset(name)(**options)


def parse_preset(text: str) -> NoisePreset:
    """Return the configuration that `text` describes, the form of the command line.

    Args:
        text: ``"pcm"`` or ``"gaussian:sigma=0.06,relative_to=max"``. Values are read as true, false, none, an integer,
            a number, or else as text; ``drift_compensation`` can be ``none`` or ``global``.

    Raises:
        UnknownNameError: there is no such preset.
        NabnError: the text is malformed, or an option is unknown or has a value that is not allowed.
    """
    form = "expected NAME or NAME:OPTION=VALUE,OPTION=VALUE"
    if not isinstance(text, str) or not text.strip():
        raise NabnError(f"malformed preset {text!r}: {form}")
    name, colon, tail = text.partition(":")
    preset = get_preset(name.strip())
    options: dict[str, Any] = {}
    for item in tail.split(",") if colon else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if not (option and equals and value):
            raise NabnError(f"malformed option {item!r} in preset {text!r}: {form}")
        if option in options:
            raise NabnError(f"option {option!r} is given twice in preset {text!r}")
        options[option] = _parse_value(value)
    if options.get("drift_compensation") == "global":
        options["drift_compensation"] = GlobalDriftCompensation()
    return preset(**options)


def _parse_value(text: str) -> bool | int | float | str | None:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    kinds: tuple[Callable[[str], int | float], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _plain(name: object) -> str:
    return str(name).lower().replace("_", "").replace("-", "").strip()


def _make_preset(name: str, noise_class: type[BaseNoiseModel]) -> type[NoisePreset]:
    cached = _PRESETS.get(name)
    if cached is not None and cached.noise_class is noise_class:
        return cached
    clash = sorted(set(argument_names(noise_class)) & set(_CONFIG_FIELDS))
    if clash:
        raise NabnError(
            f"noise model {name!r} cannot have a preset: its argument {clash[0]!r} is a field of RPU configs"
        )
    preset = type(
        f"{noise_class.__name__}Preset",
        (NoisePreset,),
        {
            "__module__": __name__,  # where pickle finds it again, through __getattr__ below
            "__doc__": f"Perfect matrix-vector products on weights with {noise_class.__name__}.\n\n"
            f"{inspect.getdoc(noise_class) or ''}",
            "noise_name": name,
            "noise_class": noise_class,
        },
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = inspect.signature(noise_class).parameters
    parameters = [taken[argument].replace(kind=keyword) for argument in argument_names(noise_class)]
    parameters += [inspect.Parameter(option, keyword, default=...) for option in _MAIN_FIELDS]
    preset.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    _PRESETS[name] = preset
    return preset


GaussianWeightNoisePreset = get_preset("gaussian")
PCMPreset = get_preset("pcm")
ReRAMWanPreset = get_preset("reram_wan")
ReRAMCMOPreset = get_preset("reram_cmo")
HermesPreset = get_preset("hermes")


def __getattr__(name: str) -> type[NoisePreset]:
    """Return the preset of a model registered outside this package, so that ``presets.MyNoisePreset`` exists."""
    if name.endswith("Preset"):
        for registered in NOISE_MODELS.names():
            if f"{NOISE_MODELS.get(registered).__name__}Preset" == name:
                return get_preset(registered)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
