from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from typer.testing import CliRunner

from aihwkit_nabn.cli import app
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Results
from aihwkit_nabn.results.layers import SHARES, WHOLE

QUICK = ["--chips", "2", "--test-images", "60", "--calibration-images", "32"]


def _run(*arguments: str):
    return CliRunner().invoke(app, ["sensitivity", *arguments])


def test_digits_from_the_command_line_and_again_from_where_it_stopped(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path)]
    first = _run(*QUICK, *out)
    assert first.exit_code == 0, first.output
    assert "only this layer on the chip" in first.output and WHOLE in first.output
    result = Results.from_json(tmp_path / "sensitivity.json")
    assert {"conv1", "linear"} < set(result.settings[SHARES]) and result.methods == ["uncalibrated", "paired"]
    assert sum(result.settings[SHARES].values()) == pytest.approx(1.0)
    assert (tmp_path / "sensitivity.png").stat().st_size > 5000 and "| conv1 |" in (
        tmp_path / "sensitivity.md"
    ).read_text()
    log = tmp_path / "sensitivity.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:-2], lines[-2][:20]]))  # killed in the middle of a line
    assert _run(*QUICK, *out, "--resume").exit_code == 0
    again = Results.from_json(tmp_path / "sensitivity.json")
    assert again.records[:-2] == result.records[:-2] and len(log.read_text().splitlines()) == len(lines)
    assert [r.comparable() for r in again.records[-2:]] == [r.comparable() for r in result.records[-2:]]
    with pytest.raises(NabnError, match="without --resume"):
        raise _run(*QUICK, *out, "--resume", "--noise", "pcm").exception


def test_another_networks_measurements_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 32), "gray")
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            image.save(tmp_path / part / name / "0.png")
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.squeezenet1_1(num_classes=2).state_dict(), other)
    options = [
        "--data",
        str(tmp_path),
        "--image-size",
        "32",
        "--loader-workers",
        "0",
        "--chips",
        "1",
        "--methods",
        "none",
    ]
    options += ["--out", str(tmp_path / "out")]
    assert _run("torchvision:squeezenet1_1", "random", *options).exit_code == 0
    with pytest.raises(NabnError, match="without --resume"):
        raise _run("torchvision:squeezenet1_1", str(other), *options, "--resume").exception
    with pytest.raises(NabnError, match="without --resume"):
        raise _run("torchvision:squeezenet1_1", "random", *options, "--batch-size", "1", "--resume").exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torchvision:resnet18"], "needs CHECKPOINT"),
        (["torchvision:resnet18", "random"], "needs --data"),
        (["--data", "x"], "digits takes no --data"),
        (["--noise", "pmc"], "pmc"),
        (["--methods", "pared"], "pared"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(arguments, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = _run(*arguments, "--out", str(out))
    assert isinstance(answer.exception, NabnError) and message in str(answer.exception)
    assert not out.exists()
