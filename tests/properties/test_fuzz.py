"""Thousands of damaged inputs: one error of ours or a result, never another exception, never a changed file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from aihwkit_nabn.cli import app
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.times import parse_time
from tests.properties.mutations import ODD, mutated_json, mutated_text, record, survives

PRESETS = [
    "pcm",
    "gaussian:sigma=0.06,relative_to=max",
    "pcm+stuck:p_off=0.01,p_on=0.001",
    "crossbar:inp_bits=6,out_bits=8,out_noise=0.04,ir_drop=1.0",
    "variational:sigma=0.1,schedule=ramp,period_samples=100",
    "temperature:mean_k=300,sigma_k=10",
    "pcm:drift_compensation=none",
]


def test_preset_texts() -> None:
    rng = random.Random(0)
    good = sum(survives(lambda: parse_preset(mutated_text(rng.choice(PRESETS), rng))) for _ in range(3000))
    assert 30 < good < 2000  # both kinds were met


def test_times() -> None:
    rng = random.Random(1)
    times = ["1d", "1.5 h", "10y", "3600", "0s", "1e3s"]
    good = sum(survives(lambda: parse_time(mutated_text(rng.choice(times), rng))) for _ in range(3000))
    assert 30 < good < 2500


def test_result_files(tmp_path: Path) -> None:
    rng, path = random.Random(2), tmp_path / "results.json"
    records = [record(chip, method) for chip in (0, 1) for method in ("none", "paired")]
    EvaluationResult(records=records, digital={"accuracy": 90.0}, settings={"seed": 0}).to_json(path)
    whole = path.read_text()
    content, good = json.loads(whole), 0
    for _ in range(1500):
        text = json.dumps(mutated_json(content, rng)) if rng.random() < 0.7 else mutated_text(whole, rng)
        path.write_bytes(text.encode())
        before = path.read_bytes()

        def read() -> None:
            result = EvaluationResult.from_json(path)
            survives(lambda: result.summary())  # e.g. no uncalibrated chips to compare with

        good += survives(read)
        assert path.read_bytes() == before
    assert 10 < good < 1400


LINES = [
    ["test", "torchvision:resnet18", "random", "--noise", "pcm", "--data", "{missing}", "--chips", "1"],
    ["test", "{missing}.py", "{missing}.pth", "--noise", "gaussian:sigma=0.1", "--time", "1h"],
    ["chip", "{missing}"],
    ["chip", "info", "{missing}"],
    ["chip", "{missing}", "{missing}"],
    ["inspect", "{missing}.py"],
    ["demo", "--chips", "0"],
    ["compare", "torchvision:resnet18", "{missing}.pth", "--noise", "pcm", "--data", "{missing}", "--epochs", "0"],
    ["compare", "{missing}.py", "{missing}.pth", "--noise", "gaussian:sigma=0.1", "--time", "1h"],
    ["report", "{missing}", "--out", "{missing}.html"],
    ["sensitivity", "torchvision:resnet18", "{missing}.pth", "--noise", "pcm", "--data", "{missing}", "--chips", "0"],
    ["sweep", "{missing}.yaml", "--out", "{missing}", "--workers", "0"],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line[:2]))
def test_command_lines(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line names something that is missing or not allowed, so none starts a long run."""
    rng = random.Random(4)
    for _ in range(25):
        arguments = [part.format(missing=tmp_path / "missing") for part in line]
        at = rng.randrange(1, len(arguments))
        kind = rng.randrange(3)
        if kind == 0:
            arguments[at] = rng.choice(ODD)
        elif kind == 1:
            arguments.insert(at, rng.choice([*ODD, "--chips", "--noise", "--bogus"]))
        elif arguments[at] != "0":
            del arguments[at]
        if arguments[0] == "demo" and "0" not in arguments:
            continue
        assert run(app, arguments) in (0, 2), arguments
        assert "Traceback" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
