"""Ready-made configurations: every registered noise model has one, a user's too."""

from __future__ import annotations

from typing import Any

from aihwkit.inference.noise.base import BaseNoiseModel

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.noise import NOISE_MODELS, ComposedNoise, argument_names
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.noise.registration import find_noise_model, plain_name
from aihwkit_nabn.simulator.config.noise_preset import NoisePreset, make_preset
from aihwkit_nabn.simulator.config.text import parse_value, split_text

_PRESETS: dict[str, type[NoisePreset]] = {}

StandardCrossbarPreset = make_preset(
    "crossbar",
    PCM,
    module=__name__,
    class_name="StandardCrossbarPreset",
    doc="""The standard crossbar of Rasch et al. (2023): PCM devices behind real converters.

    Values are those of aihwkit's ``StandardHWATrainingPreset``, which cites Rasch et al., "Hardware-aware training for
    large-scale and diverse deep learning inference workloads ...", arXiv 2302.08469:
    converters of 8 bits at input and output, outputs clipped at 10 (full inputs on the largest weight), output noise of
    0.04 in the same unit, PCM read noise of 0.0175 in every product, IR drop at its physical value, static input ranges
    (3 at first), each output column scaled to the conductance range, PCM programming noise and drift with global
    compensation. Tiles are 512 x 512, where aihwkit's preset limits the inputs only; what there acts in training alone
    (learned output scales, remapping and clipping of weights) is left out.

    Options are those of `PCM` and the forward options, each as given here unless another value is given.
    """,
    forward_defaults={
        "inp_bits": 8,
        "out_bits": 8,
        "out_bound": 10.0,
        "out_noise": 0.04,
        "w_noise": 0.0175,
        "ir_drop": 1.0,
        "input_range": True,
    },
)
ComposedPreset = make_preset("composed", ComposedNoise, module=__name__, class_name="ComposedPreset")

#: Presets that are more than a noise model.
_NAMED = {preset.noise_name: preset for preset in (StandardCrossbarPreset, ComposedPreset)}


def preset_names() -> list[str]:
    """Return the names `build_preset` and `parse_preset` take: those of the registered noise models, and `crossbar`."""
    return [*NOISE_MODELS.names(), StandardCrossbarPreset.noise_name]


def get_preset(name: str) -> type[NoisePreset]:
    """Return the preset class of a noise model.

    Args:
        name: The registered name (``"reram_wan"``), the noise class or the preset class (``"ReRAMWanPreset"``); case,
            dashes and underscores do not matter.

    Raises:
        UnknownNameError: no noise model has this name; the message suggests the nearest.
    """
    for named, preset in _NAMED.items():
        if plain_name(name) in (plain_name(named), plain_name(preset.__name__), plain_name(f"{named}noise")):
            return preset
    try:
        registered = find_noise_model(name)
    except UnknownNameError:
        is_text = ":" in str(name) or "+" in str(name)
        hint = f"; aihwkit_nabn.presets.parse_preset({name!r}) makes one from text" if is_text else ""
        raise UnknownNameError("preset", name, preset_names(), hint) from None
    noise_class, cached = NOISE_MODELS.get(registered), _PRESETS.get(registered)
    if cached is None or cached.noise_class is not noise_class:
        # Named as if it stood here, where pickle finds it again through __getattr__ below.
        cached = _PRESETS[registered] = make_preset(registered, noise_class, module=__name__)
    return cached


def build_preset(name: str, /, **options: Any) -> NoisePreset:
    """Return a configuration, e.g. ``build_preset("gaussian", sigma=0.06)``; see `get_preset` and `NoisePreset`.

    Raises:
        UnknownNameError: there is no such preset.
        NabnError: an option is unknown or has a value that is not allowed.
    """
    return get_preset(name)(**options)


def parse_preset(text: str) -> NoisePreset:
    """Return the configuration that `text` describes, the form of the command line.

    Args:
        text: ``"pcm"`` or ``"gaussian:sigma=0.06,relative_to=max"``; several effects on one chip joined with a plus,
            ``"pcm+stuck:p_off=0.01,out_bits=8"``, where options of the configuration may stand behind any of them.
            Values are read as true, false, none, an integer, a number, or else as text; ``drift_compensation`` can be
            ``none`` or ``global``. An option that a model calls its main one may stand first without its name:
            ``"measured:device.json"``.

    Raises:
        UnknownNameError: there is no such preset.
        NabnError: the text is malformed, or an option is unknown or has a value that is not allowed.
    """
    parts = []
    for name, given in split_text(text):
        preset = get_preset(name)
        if "" in given:
            alone = given.pop("")
            main = getattr(preset.noise_class, "main_option", None)
            if main is None:
                raise NabnError(f"malformed option {alone!r} in preset {text!r}: {name} has only OPTION=VALUE")
            if main in given:
                raise NabnError(f"option {main!r} is given twice in preset {text!r}")
            given = {main: alone, **given}
        parts.append((preset, {option: parse_value(option, value) for option, value in given.items()}))
    if len(parts) == 1:
        preset, options = parts[0]
        return preset(**options)
    return compose_presets(parts, text)


def compose_presets(parts: list[tuple[type[NoisePreset], dict[str, Any]]], text: str) -> NoisePreset:
    """Return one configuration with the noise of all `parts`, each a preset with its options.

    Raises:
        NabnError: an option is unknown, not allowed, or given to two parts where the chip has only one.
    """
    effects: list[BaseNoiseModel] = []
    shared: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for preset, options in parts:
        effects.append(preset(**options).noise_model)  # checks the options, too
        defaults.update(preset.forward_defaults)
        for option, value in options.items():
            if option in argument_names(preset.noise_class):
                continue
            if option in shared:
                raise NabnError(f"option {option!r} is given twice in preset {text!r}")
            shared[option] = value
    if "forward" in shared:
        defaults = {}
    return ComposedPreset(effects=effects, **{**defaults, **shared})


GaussianWeightNoisePreset = get_preset("gaussian")
PCMPreset = get_preset("pcm")
ReRAMWanPreset = get_preset("reram_wan")
ReRAMCMOPreset = get_preset("reram_cmo")
HermesPreset = get_preset("hermes")
StuckDevicesPreset = get_preset("stuck")
ThermalCrosstalkPreset = get_preset("thermal")
TemperatureVariationPreset = get_preset("temperature")
ReferenceCurrentVariationPreset = get_preset("reference_current")
VariationalNoisePreset = get_preset("variational")


def __getattr__(name: str) -> type[NoisePreset]:
    """Return the preset of a model registered outside this package, so that ``presets.MyNoisePreset`` exists."""
    if name.endswith("Preset"):
        for registered in NOISE_MODELS.names():
            if f"{NOISE_MODELS.get(registered).__name__}Preset" == name:
                return get_preset(registered)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
