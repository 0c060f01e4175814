"""The shipped configs: every one loads, and what it says about analog chips is accepted."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from mmengine.config import Config

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab import AnalogHook, AnalogTestLoop
from aihwkit_nabn.openmmlab.config import scope_of
from aihwkit_nabn.openmmlab.settings import build_methods, build_rpu_config, build_scenarios
from aihwkit_nabn.simulator import get_preset, parse_preset, preset_names

ROOT = Path(__file__).parents[2] / "configs"
MODELS = sorted([*(ROOT / "mmdet").glob("*.py"), *(ROOT / "mmseg").glob("*.py")])
ANALOG = sorted((ROOT / "_base_" / "analog").glob("*.py"))


def _analog_hooks(config: Config) -> list[dict]:
    hooks = [dict(hook) for hook in config.get("custom_hooks", []) if hook["type"] == "AnalogHook"]
    for hook in hooks:
        del hook["type"]
    return hooks


def test_every_preset_has_a_file() -> None:
    named = {get_preset(_analog_hooks(Config.fromfile(str(p)))[0]["rpu_config"]["type"]).noise_name for p in ANALOG}
    ours = {name for name in preset_names() if get_preset(name).noise_class.__module__.startswith("aihwkit_nabn.")}
    assert named == {*ours, "composed"}  # other tests register models of their own
    assert len(list((ROOT / "mmdet").glob("*.py"))) >= 6 and len(list((ROOT / "mmseg").glob("*.py"))) >= 6


@pytest.mark.parametrize("path", ANALOG, ids=lambda path: path.stem)
def test_noise_setting(path: Path) -> None:
    config = Config.fromfile(str(path), import_custom_modules=False)
    assert config.custom_imports.imports == ["aihwkit_nabn.openmmlab"]
    (settings,) = _analog_hooks(config)
    build_scenarios(settings["rpu_config"], settings["t_inference"])
    assert AnalogHook(**settings).method is not None


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_config(path: Path) -> None:
    config = Config.fromfile(str(path))
    assert scope_of(config) == path.parent.name
    assert config.custom_imports.imports == ["aihwkit_nabn.openmmlab"]
    assert config.test_dataloader and config.test_evaluator and config.train_dataloader
    hooks = _analog_hooks(config)
    if config.test_cfg.type == "AnalogTestLoop":
        assert not hooks
        settings = {key: value for key, value in config.test_cfg.items() if key not in ("type", "_scope_")}
        inspect.signature(AnalogTestLoop.__init__).bind(None, None, None, None, **settings)
        assert build_scenarios(settings["rpu_config"], settings["t_inference"])
        assert build_methods(settings["methods"], None).specs
    else:
        (settings,) = hooks
        AnalogHook(**settings)


@pytest.mark.parametrize("path", [p for p in MODELS if p.name.startswith(("yolox", "rtmdet"))], ids=lambda p: p.stem)
def test_the_models_own_hooks_stay(path: Path) -> None:
    kinds = {hook["type"] for hook in Config.fromfile(str(path)).custom_hooks}
    assert {"EMAHook"} < kinds and kinds & {"YOLOXModeSwitchHook", "PipelineSwitchHook"}


def test_several_effects_on_one_chip() -> None:
    effects = [dict(type="PCMPreset"), dict(type="StuckDevicesPreset", p_off=0.01), "thermal"]
    name, config = build_rpu_config(dict(type="ComposedPreset", effects=effects, out_bits=8))
    assert name == "pcm+stuck:p_off=0.01+thermal:out_bits=8"
    text = "pcm+stuck:p_off=0.01+thermal:out_bits=8"
    assert build_rpu_config(text)[1].noise_model == config.noise_model and not config.forward.is_perfect
    assert parse_preset(name).noise_model == config.noise_model
    with pytest.raises(NabnError, match="has no option 'p_of'"):
        build_rpu_config(dict(type="ComposedPreset", effects=[dict(type="StuckDevices", p_of=1)]))
    with pytest.raises(NabnError, match="effects must be a list of at least one"):
        build_rpu_config(dict(type="ComposedPreset"))
