from __future__ import annotations

from typing import Any

import pytest

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import label_methods
from aihwkit_nabn.evaluation.scenario import config_key


def _config(sigma: float = 0.06) -> Any:
    return nabn.presets.GaussianWeightNoisePreset(sigma=sigma)


def test_time_is_taken_as_text() -> None:
    assert Scenario(name="a", rpu_config=_config(), t_inference="1.5d").t_inference == 129_600.0
    assert Scenario(name="a", rpu_config=_config(), t_inference=3).t_inference == 3.0


def test_a_config_changed_later_does_not_change_the_scenario() -> None:
    config = _config(0.06)
    scenario = Scenario(name="a", rpu_config=config)
    config.noise_model.sigma = 0.5
    assert scenario.rpu_config.noise_model.sigma == 0.06


@pytest.mark.parametrize("preset", ["gaussian", "pcm"])
def test_config_key_is_the_same_for_equal_configs_only(preset: str) -> None:
    configs = [nabn.presets.build_preset(preset) for _ in range(2)]
    scenarios = [Scenario(name="a", rpu_config=config) for config in configs]
    assert config_key(scenarios[0].rpu_config) == config_key(scenarios[1].rpu_config)
    configs[1].mapping.max_input_size = 64
    assert config_key(Scenario(name="a", rpu_config=configs[1]).rpu_config) != config_key(scenarios[0].rpu_config)


def test_config_that_cannot_be_pickled_equals_itself_only() -> None:
    config, other = _config(), _config()
    config.noise_model.hook = other.noise_model.hook = lambda: None
    assert config_key(config) == config_key(config) != config_key(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name must be non-empty text on one line, got ''"),
        ({"name": "a\nb"}, "name must be"),
        (
            {"rpu_config": "pcm"},
            "rpu_config of scenario 'a' must be .*, got 'pcm'; .*presets.parse_preset.'pcm'. makes",
        ),
        ({"rpu_config": nabn.presets.PCMPreset}, "got the class PCMPreset; call it: PCMPreset.."),
        ({"rpu_config": 3}, "got int; aihwkit_nabn.presets.PCMPreset.. is one"),
        ({"t_inference": -1.0}, "t_inference must be a finite number >= 0, got -1.0"),
        ({"t_inference": "soon"}, "time must be .*got 'soon'"),
        ({"strength": float("nan")}, "strength must be"),
        ({"group": 3}, "group must be"),
    ],
)
def test_scenario_errors_name_field_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        Scenario(**{"name": "a", "rpu_config": _config(), **changes})


def test_name_and_configuration_go_by_position() -> None:
    assert Scenario("a", _config(), t_inference="1d") == Scenario(name="a", rpu_config=_config(), t_inference=86400.0)
    with pytest.raises(TypeError):
        Scenario("a", _config(), 5.0)  # type: ignore[misc]


def test_methods_get_labels_and_the_uncalibrated_one_comes_first() -> None:
    methods = ["ema", MethodSpec("population", batches="plain"), MethodSpec("population", batches="augmented")]
    got = [(spec.method, spec.label) for spec in label_methods(methods)]
    assert got == [
        ("none", "uncalibrated"),
        ("ema", "ema"),
        ("population", "population, plain"),
        ("population", "population, augmented"),
    ]


def test_a_calibration_set_is_in_the_label_only_where_it_tells_methods_apart() -> None:
    assert [spec.label for spec in label_methods([MethodSpec("ema", batches="plain")])] == ["uncalibrated", "ema"]
    assert [spec.label for spec in label_methods("ema")] == ["uncalibrated", "ema"]
    assert [spec.label for spec in label_methods(["ema", MethodSpec("none", label="as is")])] == ["as is", "ema"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["ema", "ema"], "2 methods have the label 'ema'"),
        (["none", "none"], "'none' more than once"),
        ([MethodSpec("ema", label="uncalibrated")], "2 methods have the label 'uncalibrated'"),
        ([3], "got 3"),
    ],
)
def test_method_lists_that_cannot_work(methods: list[Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        label_methods(methods)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": ""}, "method must be"),
        ({"method": "ema", "label": "digital"}, "label must not be 'digital'"),
        ({"method": "ema", "options": [1]}, "options must be a mapping"),
        ({"method": "none", "options": {"a": 1}}, "takes neither batches nor options"),
    ],
)
def test_method_spec_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        MethodSpec(**fields)
