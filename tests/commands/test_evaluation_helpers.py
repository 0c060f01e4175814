from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.commands._evaluation import check_out, parse_scenarios, say_written, split_names, without_impossible
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import method_specs
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.noise import NOISE_MODELS
from aihwkit_nabn.workloads import Workload


def test_split_names() -> None:
    assert split_names(" none, paired ,,population") == ["none", "paired", "population"]
    assert split_names("") == []


def test_one_setting_is_a_curve_over_time() -> None:
    scenarios = parse_scenarios(["pcm"], ["1h", "86400"])
    assert [scenario.name for scenario in scenarios] == ["pcm, 1h", "pcm, 1d"]
    assert [scenario.t_inference for scenario in scenarios] == [3600.0, 86400.0]
    assert {(scenario.group, scenario.strength) for scenario in scenarios} == {("pcm", None)}


@pytest.mark.parametrize(
    ("methods", "asked", "with_statistics", "left_out"),
    [
        ("none,population,auto", None, True, []),
        ("none,population,auto", None, False, ["population"]),
        ("all", "all", True, []),
        ("all", "all", False, ["batch", "ema", "online", "population", "prior"]),
        ("all,prior", "all,prior", False, ["batch", "ema", "online", "population"]),
        ("population,ema:remainder=0.2", "population, ema:remainder=0.2", False, []),
    ],
)
def test_what_replaces_statistics_stays_only_where_there_are_some_or_it_was_asked_for(
    methods: str, asked: str | None, with_statistics: bool, left_out: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=with_statistics))
    workload = Workload(model=model, eval_fn=lambda network: {"accuracy": 0.0}, calibration=lambda request: [])
    specs = method_specs(split_names(methods))
    kept = without_impossible(Console(width=200), specs, workload, asked)
    out = [spec for spec in specs if spec not in kept]
    assert sorted(spec.method for spec in out) == left_out
    said = capsys.readouterr().out
    assert (f"{', '.join(spec.method for spec in out)} " in said and "left out" in said) if left_out else said == ""


@pytest.mark.parametrize(
    ("noise", "n"),
    [("gaussian:sigma=0.1", 1), ("stuck", 1), ("stuck+gaussian:sigma=0.1", 1), ("reram_wan", 2), ("pcm+stuck", 2)],
)
def test_noise_that_does_not_change_with_time_is_measured_once(noise: str, n: int) -> None:
    scenarios = parse_scenarios([noise], ["1h", "1d"])
    assert len(scenarios) == n
    if n == 1:
        weights = [programmed_weights(scenarios[0].rpu_config, time) for time in (3600.0, 86_400.0)]
        assert torch.equal(*weights)


def programmed_weights(config: Any, time: float) -> torch.Tensor:
    torch.manual_seed(0)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(nn.Linear(5, 4), config), 0, time)
    return chip(torch.eye(5)).detach()


def test_strengths_are_a_curve_even_over_times() -> None:
    scenarios = parse_scenarios(["gaussian:sigma=0.02", "gaussian:sigma=0.06", "pcm"], ["1h", "1d"])
    assert [(scenario.name, scenario.strength) for scenario in scenarios] == [
        ("gaussian:sigma=0.02", 0.02),
        ("gaussian:sigma=0.06", 0.06),
        ("pcm, 1h", None),
        ("pcm, 1d", None),
    ]


def test_several_strengths_of_one_model_are_a_curve_over_strength() -> None:
    noises = ["gaussian:sigma=0.02,relative_to=max", "gaussian:sigma=0.06,relative_to=max", "pcm"]
    scenarios = parse_scenarios(noises, ["1d"])
    assert [scenario.strength for scenario in scenarios] == [0.02, 0.06, None]
    assert [scenario.group for scenario in scenarios] == ["gaussian, relative_to=max"] * 2 + ["pcm"]
    assert scenarios[0].name == noises[0] and scenarios[2].name == "pcm, 1d"


@pytest.mark.parametrize(
    ("noise", "time", "message"),
    [
        ("gausian", "1d", "did you mean 'gaussian'"),
        ("gaussian:sigma=-1", "1d", "sigma"),
        ("pcm", "-5", "time must be"),
        ("pcm", "1 fortnight", "time must be"),
    ],
)
def test_scenario_errors(noise: str, time: str, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        parse_scenarios([noise], [time])


def test_import_of_a_file_registers_its_noise(tmp_path: Path) -> None:
    path = tmp_path / "my_noise.py"
    path.write_text(
        "from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model\n"
        "@register_noise_model('scaled_for_test')\n"
        "class Scaled(WeightNoiseModel):\n"
        "    strength = 'loss'\n"
        "    def __init__(self, loss: float = 0.1) -> None:\n"
        "        super().__init__()\n"
        "        self.loss = loss\n"
        "    def program(self, weights, w_max, generator):\n"
        "        return weights * (1 - self.loss)\n"
    )
    try:
        import_extension(str(path))
        assert parse_scenarios(["scaled_for_test:loss=0.2"], ["1s"])[0].name == "scaled_for_test:loss=0.2"
    finally:
        NOISE_MODELS.unregister("scaled_for_test")


def test_several_effects_are_one_scenario() -> None:
    (scenario,) = parse_scenarios(["pcm+stuck:p_off=0.01,out_bits=8"], ["1h"])
    assert scenario.name == "pcm+stuck:p_off=0.01,out_bits=8, 1h" and scenario.strength is None
    assert len(scenario.rpu_config.noise_model.effects) == 2


def test_import_errors(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="no such file"):
        import_extension(str(tmp_path / "none.py"))
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(NabnError, match="ZeroDivisionError: division by zero"):
        import_extension(str(tmp_path / "bad.py"))
    with pytest.raises(NabnError, match="cannot import no_such_module_anywhere"):
        import_extension("no_such_module_anywhere")


def test_folders_are_among_what_was_written_but_not_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("examples", "logs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "table.md").write_text("")
    say_written(Console(), tmp_path)
    assert capsys.readouterr().out == f"Written to {tmp_path}/: examples/, table.md\n"


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    assert check_out(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(NabnError, match="out must be a folder"):
        check_out(tmp_path / "file")
