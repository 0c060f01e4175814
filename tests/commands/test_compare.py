from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.commands.compare import (
    AFTER_TRAINING,
    DIGITS_METHODS,
    OTHERS_METHODS,
    TIMES,
    noise_settings,
    settings_of_noise,
)
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.reporting import after_training, verdict
from aihwkit_nabn.reporting.price import price_rows
from aihwkit_nabn.results import Record

ARGUMENTS = ["compare", "--quick", "--chips", "2", "--epochs", "1", "--methods", "paired"]


def _values(result: EvaluationResult) -> dict[tuple[str, str, int], float]:
    return {(r.scenario, r.method, r.chip_seed): r.metrics["accuracy"] for r in result.records}


def test_settings_are_additive_noise_and_pcm_over_time() -> None:
    additive, pcm = noise_settings((0.06,), TIMES)
    assert additive.scenarios[0].strength == 0.06
    assert [scenario.t_inference for scenario in pcm.scenarios] == [1.0, 3600.0, 86_400.0, 31_557_600.0, 315_576_000.0]


def test_compare_writes_its_files_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare"
    assert run(cli.app, [*ARGUMENTS, "--out", str(out)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "labelled images" in text and "against the same training alone" in text and "drift compensation" in text
    names = {path.name for path in out.iterdir()}
    assert names == {
        "accuracy.png",
        "accuracy_close.png",
        "records.jsonl",
        "results.json",
        "table.csv",
        "table.md",
        "trained",
    }
    result = EvaluationResult.from_json(out / "results.json")
    assert result.methods == [
        *("uncalibrated", "drift compensation only", "paired"),
        *("HWA", "HWA, noise / 4", "HWA, noise x 2", "HWA + paired"),
    ]
    values = _values(result)
    assert len(values) == 2 * (6 + 7 + 7)
    # Calibration brings more than half of the loss back, without a label.
    for chip in (0, 1):
        assert values["additive 0.10", "paired", chip] > values["additive 0.10", "uncalibrated", chip] + 10
    prices = {row["label"]: row for row in price_rows(result)}
    assert (prices["paired"]["images"], prices["paired"]["labels"]) == (256, 0)
    assert prices["HWA + paired"]["labels"] == 1080 and prices["HWA"]["seconds_training"] > 0
    assert "| HWA + paired | 1,080 | 1,080 | 1,080 |" in (out / "table.md").read_text()
    assert set(result.settings["training"]) == {
        f"{setting}, {label}"
        for setting in ("additive 0.10", "PCM")
        for label in ("HWA", "HWA, noise / 4", "HWA, noise x 2")
    }
    # Cut off in the middle of a line, and without one of the networks.
    lines = (out / "records.jsonl").read_text().splitlines()
    (out / "records.jsonl").write_text("\n".join(lines[:-6]) + '\n{"record": {"scen')
    (out / "trained" / "PCM_hwa.safetensors").unlink()
    assert run(cli.app, [*ARGUMENTS, "--out", str(out), "--resume"]) == 0
    assert _values(EvaluationResult.from_json(out / "results.json")) == values
    capsys.readouterr()
    assert run(cli.app, [*ARGUMENTS, "--out", str(out), "--resume", "--seed", "3"]) == 2
    assert "was made with" in capsys.readouterr().err


def _result(scores: dict[str, list[float]]) -> EvaluationResult:
    names = {"uncalibrated": "none", "HWA": "hwa", "HWA + paired": "hwa+paired"}
    records = [
        Record(
            scenario="first",
            group=None,
            strength=None,
            t_inference=0.0,
            method=label,
            method_name=names[label],
            chip_seed=chip,
            metrics={"accuracy": value},
            seconds_calibration=0.0,
            seconds_evaluation=0.0,
            n_calibration_samples=0,
        )
        for label, values in scores.items()
        for chip, value in enumerate(values)
    ]
    return EvaluationResult(records=records, digital={"accuracy": 99.0}, settings={})


def test_verdict_names_where_calibration_after_training_is_worse() -> None:
    better = _result({"uncalibrated": [50.0, 60.0], "HWA": [90.0, 92.0], "HWA + paired": [91.0, 93.5]})
    assert [entry.difference.mean for entry in after_training(better)] == [1.25]
    assert "+1.25 to +1.25; at least as good in all 1 scenarios" in verdict(better)[0]
    worse = _result({"uncalibrated": [50.0, 60.0], "HWA": [90.0, 92.0], "HWA + paired": [89.0, 92.5]})
    assert "below it in 1 of 1 scenarios, beyond what chips vary by in none: first (-0.25 [" in verdict(worse)[0]
    assert verdict(_result({"uncalibrated": [50.0]})) == []


def test_what_is_tried_without_being_asked_for_is_tried_after_training_too() -> None:
    for methods in (DIGITS_METHODS, OTHERS_METHODS):
        assert set(methods.split(",")) <= set(AFTER_TRAINING)


def test_unknown_method_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compare"
    assert run(cli.app, ["compare", "--methods", "pared", "--out", str(out)]) == 2
    assert "did you mean 'paired'" in capsys.readouterr().err and not out.exists()


@pytest.mark.slow
def test_a_network_without_batchnorm_is_compared_by_what_suits_it(
    shapes_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    given = ["compare", f"{tmp_path / 'plain.py'}:build", "random", "--data", str(shapes_folder())]
    given += ["--image-size", "32", "--noise", "pcm", "--chips", "1", "--epochs", "1", "--wrong", "2"]
    given += ["--loader-workers", "0", "--out"]
    assert run(cli.app, [*given, str(tmp_path / "out")]) == 0
    assert "population is left out: the network has no BatchNorm" in capsys.readouterr().out
    methods = EvaluationResult.from_json(tmp_path / "out" / "results.json").methods
    assert "HWA + paired" in methods and not any("population" in method for method in methods)
    assert run(cli.app, [*given, str(tmp_path / "asked"), "--methods", "population"]) == 2
    assert "no BatchNorm with trained statistics" in capsys.readouterr().err


def test_a_classifier_against_retraining(shapes_folder: Callable[..., Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["compare", "torchvision:resnet18", "random", "--data", str(shapes_folder()), "--image-size", "32"]
    arguments += ["--noise", "gaussian:sigma=0.1", "--noise", "pcm", "--time", "1h", "--chips", "1", "--epochs", "1"]
    arguments += [
        "--batch-size",
        "6",
        "--methods",
        "paired",
        "--wrong",
        "0.25",
        "--loader-workers",
        "0",
        "--out",
        str(out),
    ]
    assert run(cli.app, arguments) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "3 classes" in text and "1 epochs of 12 labelled images" in text
    result = EvaluationResult.from_json(out / "results.json")
    assert [scenario["name"] for scenario in result.settings["scenarios"]] == ["gaussian:sigma=0.1", "pcm, 1h"]
    assert len(result.records) == 5 + 6  # drift compensation only where there is drift
    assert run(cli.app, [*arguments, "--noise", "gaussian:sigma=0.2", "--resume"]) == 0
    more = EvaluationResult.from_json(out / "results.json")
    assert _values(more).items() > _values(result).items() and len(more.records) == 5 + 6 + 5
    assert {scenario["name"]: scenario["strength"] for scenario in more.settings["scenarios"]} == {
        "gaussian:sigma=0.1": 0.1,  # a curve now
        "pcm, 1h": None,
        "gaussian:sigma=0.2": 0.2,
    }
    assert {record.strength for record in more.records if record.group == "gaussian"} == {0.1, 0.2}
    assert run(cli.app, [*arguments, "--trained-at", "1d", "--resume"]) == 2
    assert "was made with --trained-at = '1h', not '1d'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "1d"], "--time and --trained-at go with --noise"),
        (["digits", "x.pth", "--noise", "pcm"], "digits takes no CHECKPOINT"),
        (["--wrong", "half"], "wrong must be numbers separated by commas, got 'half'"),
        (["--wrong", "1"], "wrong must hold different factors other than 1"),
        (["torchvision:resnet18", "--noise", "pcm"], "torchvision:resnet18 needs CHECKPOINT"),
        (["torchvision:resnet18", "random"], "--noise is missing"),
        (["torchvision:resnet18", "random", "--noise", "pcm"], "torchvision:resnet18 needs --data"),
        (["torchvision:resnet18", "random", "--noise", "pcm", "--quick"], "--quick is for the embedded digits"),
        (["torchvision:resnet18", "random", "--noise", "pmc", "--data", "."], "did you mean 'pcm'"),
        (["torchvision:resnet18", "random", "--noise", "pcm", "--trained-at", "x", "--data", "."], "time must be"),
        (["torchvision:resnet81", "random", "--noise", "pcm", "--data", "."], "did you mean 'resnet18'"),
        (["nowhere.py", "x.pth", "--noise", "pcm"], "nowhere.py"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    if message == "nowhere.py":
        pytest.importorskip("mmengine")  # without it, that is the message
    assert run(cli.app, ["compare", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nabn: error: ") and message in error and "Traceback" not in error
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_noise_is_trained_for_at_one_time_and_measured_at_all() -> None:
    gaussian, pcm = settings_of_noise(["gaussian:sigma=0.1", "pcm"], ["1h", "1y"], "1d")
    assert [scenario.t_inference for scenario in pcm.scenarios] == [3600.0, 31_557_600.0]
    assert pcm.trained_at == 86_400.0 and gaussian.name == "gaussian:sigma=0.1"
    assert [scenario.name for scenario in gaussian.scenarios] == ["gaussian:sigma=0.1"]  # the same at all times
    assert settings_of_noise(["pcm"], ["1h"])[0].trained_at == 3600.0


@pytest.mark.parametrize(("noises", "times"), [(["pcm", "pcm"], ["1d"]), (["pcm"], ["1d", "24h"])])
def test_the_same_noise_and_time_twice_is_refused_before_anything_is_trained(noises, times) -> None:
    with pytest.raises(NabnError, match=r"got 'pcm, 1d' twice"):
        settings_of_noise(noises, times)


@pytest.mark.slow
def test_a_comparison_for_another_time_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "digits", "--noise", "pcm", "--time", "1h", "--chips", "1", "--epochs", "1"]
    arguments += ["--methods", "paired", "--wrong", "2", "--test-images", "30", "--out", str(tmp_path)]
    assert run(cli.app, arguments) == 0
    result = EvaluationResult.from_json(tmp_path / "results.json")
    assert set(result.settings["layer_shifts"]) == {"pcm, 1h"}
    # Killed behind the last record: notes stand before the records, so nothing is missing.
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if '"record"' in line)
    path.write_text("".join(lines[: last + 1]))
    assert run(cli.app, [*arguments, "--resume"]) == 0
    capsys.readouterr()
    assert run(cli.app, [*arguments, "--resume", "--trained-at", "1y"]) == 2
    assert "was made with --trained-at = '1h', not '1y'" in capsys.readouterr().err
