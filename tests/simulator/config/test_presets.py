"""Presets: finding, building and parsing them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re

import pytest
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.simulator.parameters import IOParameters, MappingParameter

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.noise import NOISE_MODELS, ComposedNoise
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.noise.stuck import StuckDevices
from aihwkit_nabn.simulator import NoiseAwareRPUConfig, build_preset, get_preset, parse_preset, preset_names, presets
from aihwkit_nabn.simulator.config.io_options import FORWARD_OPTIONS

BUILT_IN = {
    "gaussian": presets.GaussianWeightNoisePreset,
    "pcm": presets.PCMPreset,
    "reram_wan": presets.ReRAMWanPreset,
    "reram_cmo": presets.ReRAMCMOPreset,
    "hermes": presets.HermesPreset,
    "stuck": presets.StuckDevicesPreset,
    "thermal": presets.ThermalCrosstalkPreset,
    "temperature": presets.TemperatureVariationPreset,
    "reference_current": presets.ReferenceCurrentVariationPreset,
    "variational": presets.VariationalNoisePreset,
    "crossbar": presets.StandardCrossbarPreset,
}


@pytest.mark.parametrize(("name", "preset_class"), BUILT_IN.items())
def test_presets_are_found_however_they_are_written(name, preset_class):
    for text in (name, name.upper(), preset_class.__name__, preset_class.__name__.lower(), name.replace("_", "-")):
        assert get_preset(text) is preset_class
    assert getattr(presets, preset_class.__name__) is preset_class
    assert issubclass(preset_class, NoiseAwareRPUConfig)
    assert name in preset_names()


def test_an_unknown_preset_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="unknown preset 'gausian', did you mean 'gaussian'"):
        get_preset("gausian")
    with pytest.raises(UnknownNameError, match="known: .*pcm"):
        get_preset(3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        presets.NoSuchPreset  # noqa: B018


@pytest.mark.parametrize("name", NOISE_MODELS.names())
def test_models_that_drift_are_compensated_and_others_are_not(name):
    preset = build_preset(name)
    drifts = NOISE_MODELS.get(name)().drifts
    assert isinstance(preset.drift_compensation, GlobalDriftCompensation) is drifts
    assert preset.mapping.weight_scaling_omega == float(NOISE_MODELS.get(name).columnwise_mapping)
    assert (preset.mapping.max_input_size, preset.mapping.max_output_size) == (512, 512)
    assert preset.forward.is_perfect
    assert preset.noise_model == NOISE_MODELS.get(name)()


def test_options_go_to_the_noise_model_and_the_config():
    forward, mapping = IOParameters(out_noise=0.1), MappingParameter(max_input_size=64)
    preset = build_preset("pcm", g_max_us=20.0, forward=forward, mapping=mapping, drift_compensation=None)
    assert preset.noise_model.g_max_us == 20.0
    assert preset.forward is forward and preset.mapping is mapping and preset.drift_compensation is None


def test_presets_share_nothing():
    first, second = build_preset("pcm"), build_preset("pcm")
    for name in ("forward", "mapping", "noise_model", "drift_compensation"):
        assert getattr(first, name) is not getattr(second, name)


def test_signature_and_help_show_the_options():
    assert list(inspect.signature(presets.GaussianWeightNoisePreset).parameters) == [
        "sigma",
        "relative_to",
        "forward",
        "mapping",
        "drift_compensation",
        *FORWARD_OPTIONS,
        "replicate_rows",
        "output_range",
    ]
    assert "relative_to" in (presets.GaussianWeightNoisePreset.__doc__ or "")


def test_replacing_a_field_keeps_the_rest():
    preset = build_preset("gaussian", sigma=0.2)
    changed = dataclasses.replace(preset, mapping=MappingParameter(max_input_size=64))
    assert type(changed) is type(preset) and changed.noise_model.sigma == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmaa": 1}, "has no option 'sigmaa', did you mean 'sigma'.; allowed: sigma, relative_to, forward"),
        ({"sigma": -1}, "sigma must be"),
        ({"forward": 3}, "forward must be an instance of IOParameters, got 3"),
        ({"mapping": None}, "mapping must be an instance of MappingParameter, got None"),
        ({"drift_compensation": "yes"}, "drift_compensation must be an instance of BaseDriftCompensation or None"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(NabnError, match=message):
        build_preset("gaussian", **options)


@pytest.mark.parametrize("text", ["gaussian:sigma=0.1", "pcm+stuck"])
def test_the_command_lines_form_goes_elsewhere(text):
    with pytest.raises(UnknownNameError, match=rf"unknown preset '{re.escape(text)}'; .*parse_preset\('"):
        build_preset(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gaussian", build_preset("gaussian")),
        (" GaussianWeightNoisePreset ", build_preset("gaussian")),
        ("gaussian:sigma=0.1,relative_to=weight", build_preset("gaussian", sigma=0.1, relative_to="weight")),
        ("gaussian: sigma = 1e-1 , relative_to = weight", build_preset("gaussian", sigma=0.1, relative_to="weight")),
        (
            "hermes:num_devices=1,drift_compensation=none",
            build_preset("hermes", num_devices=1, drift_compensation=None),
        ),
    ],
)
def test_texts_are_parsed(text, expected):
    assert parse_preset(text) == expected


def test_compensation_can_be_asked_for_by_name():
    assert isinstance(parse_preset("gaussian:drift_compensation=global").drift_compensation, GlobalDriftCompensation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "malformed preset ''"),
        (None, "malformed preset None"),
        ("gaussian:", "malformed option '' in preset 'gaussian:': expected NAME or NAME:OPTION=VALUE"),
        ("gaussian:sigma", "malformed option 'sigma'"),
        ("gaussian:sigma=", "malformed option 'sigma='"),
        ("gaussian:=3", "malformed option '=3'"),
        ("gaussian:sigma=0.1,,relative_to=max", "malformed option ''"),
        ("gaussian:sigma=0.1,sigma=0.2", "'sigma' is given twice"),
        ("gaussian:sigma=big", "sigma must be a finite number >= 0, got 'big'"),
        ("gaussian:sigma=true", "sigma must be a finite number >= 0, got True"),
        ("gaussian:gamma=1", "no option 'gamma'"),
        ("gauss ian:sigma=1", "unknown preset"),
        ("pcm:forward=3", "forward must be an instance"),
    ],
)
def test_malformed_texts_are_refused(text, message):
    with pytest.raises(NabnError, match=message):
        parse_preset(text)


def test_effects_are_joined_with_a_plus():
    preset = parse_preset("pcm+stuck:p_off=0.01,p_on=0")
    assert preset.noise_model == ComposedNoise([PCM(), StuckDevices(p_off=0.01, p_on=0.0)])
    assert isinstance(preset.drift_compensation, GlobalDriftCompensation) and preset.forward.is_perfect
    assert preset.mapping.weight_scaling_omega == 1.0
    plain = parse_preset(" gaussian:sigma=3e+1 + temperature ")
    assert plain.noise_model == ComposedNoise([GaussianWeightNoise(30.0), "temperature"])
    assert plain.drift_compensation is None and plain.mapping.weight_scaling_omega == 0.0
    assert parse_preset("pcm+stuck:drift_compensation=none").drift_compensation is None


def test_compositions_are_presets_like_any_other():
    preset = build_preset("composed", effects=["pcm", dict(type="StuckDevicesPreset", p_off=0.02)], out_noise=0.1)
    assert type(preset) is presets.ComposedPreset is get_preset("ComposedPreset") and preset.forward.out_noise == 0.1
    for twin in (copy.deepcopy(preset), pickle.loads(pickle.dumps(preset))):
        assert twin.noise_model == preset.noise_model and str(twin) == str(preset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pcm+", "malformed preset"),
        ("+pcm", "malformed preset"),
        ("pcm++stuck", "malformed preset"),
        ("pcm+stuk", "unknown preset 'stuk', did you mean 'stuck'"),
        ("pcm+stuck:sigma=1", "StuckDevicesPreset has no option 'sigma'"),
        ("pcm:out_bits=8+stuck:out_bits=9", "option 'out_bits' is given twice"),
        ("pcm+stuck:p_off=2", "p_off must be"),
        ("composed", "effects"),
    ],
)
def test_malformed_compositions_are_refused(text, message):
    with pytest.raises(NabnError, match=message):
        parse_preset(text)
