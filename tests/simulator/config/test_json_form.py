"""RPU configurations as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aihwkit.inference import GlobalDriftCompensation
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.simulator import NoiseAwareRPUConfig, parse_preset
from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json
from tests.built_in import NOISE_NAMES

TEXTS = [*NOISE_NAMES, "crossbar", "pcm+stuck:p_off=0.01", "gaussian:sigma=0.1,inp_bits=8,out_bits=8,out_noise=0.04"]


def round_trip(config: Any) -> Any:
    return config_from_json(json.loads(json.dumps(config_to_json(config), allow_nan=False)))


@pytest.mark.parametrize("text", TEXTS)
def test_presets_come_back(text: str) -> None:
    config = parse_preset(text)
    again = round_trip(config)
    assert type(again) is type(config) and str(again) == str(config)
    assert again.noise_model == config.noise_model and again.tile_class is config.tile_class


def test_aihwkits_own_configs_come_back() -> None:
    for config in (
        TorchInferenceRPUConfig(),
        InferenceRPUConfig(noise_model=PCMLikeNoiseModel(g_max=30.0), drift_compensation=GlobalDriftCompensation()),
    ):
        again = round_trip(config)
        assert type(again) is type(config) and str(again) == str(config)
        assert vars(again.noise_model).keys() == vars(config.noise_model).keys()


def test_what_has_no_form_is_named() -> None:
    config = parse_preset("pcm")
    config.forward.inp_res = object()  # type: ignore[assignment]
    with pytest.raises(NabnError, match=r"rpu_config.forward.inp_res cannot be stored: object"):
        config_to_json(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"object": "builtins.eval"}, "'builtins.eval', which is not known here"),
        ({"fields": {"forwards": 1}}, "unknown field 'forwards', did you mean 'forward'"),
        ({"fields": 3}, "rpu_config is malformed"),
        ({"more": 3}, "rpu_config is malformed"),
    ],
)
def test_malformed_content(change: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        config_from_json(config_to_json(parse_preset("pcm")) | change)
    with pytest.raises(NabnError, match="must be an aihwkit RPU configuration, got list"):
        config_from_json([])


def test_files_of_version_0_1_are_read() -> None:
    """Their classes had other modules."""
    for config in (parse_preset("crossbar"), NoiseAwareRPUConfig()):
        text = json.dumps(config_to_json(config))
        for module, of_old in (("rpu_config", "config"), ("presets", "presets")):
            text = text.replace(f"aihwkit_nabn.simulator.config.{module}.", f"aihwkit_nabn.simulator.{of_old}.")
        assert "aihwkit_nabn.simulator.config.presets" not in text and "rpu_config." not in text
        again = config_from_json(json.loads(text))
        assert type(again) is type(config) and str(again) == str(config)
