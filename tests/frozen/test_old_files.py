"""Files that version 0.1 wrote are read, and gone on with, as it did."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import aihwkit_nabn as nabn
from tests.frozen import files
from tests.frozen.files import OLD
from tests.frozen.tiny_workload import tiny_images, tiny_network

MARK = 77.0
"""A value that no run gives: where it comes out, it was read and not measured again."""


def _marked(name: str, folder: Path, mark: Callable[[list[Any]], None]) -> Path:
    """Put a copy of an old log, one of its values changed, where a command goes on with it."""
    lines = [json.loads(line) for line in (OLD / name).read_text().splitlines()]
    mark(lines)
    folder.mkdir()
    path = folder / Path(name).name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_results() -> None:
    result = nabn.EvaluationResult.from_json(OLD / "test" / "results.json")
    assert result.methods == ["uncalibrated", "population", "paired"] and result.n_chips == 2
    assert result.records[0].metrics["mean"] == pytest.approx(result.digital["mean"], abs=0.1)
    assert list(result.to_frame()["chip_seed"]) == [0, 0, 0, 1, 1, 1]


def test_a_log_of_nabn_test(tmp_path: Path) -> None:
    def mark(lines: list[Any]) -> None:
        lines[-2]["record"]["metrics"]["mean"] = MARK
        del lines[2]

    _marked("test/records.jsonl", tmp_path / "out", mark)
    files.test(tmp_path / "out", "--resume")
    old = json.loads((OLD / "test" / "results.json").read_text())
    new = json.loads((tmp_path / "out" / "results.json").read_text())
    values = [record["metrics"]["mean"] for record in new["records"]]
    assert values[-1] == MARK and values[:-1] == pytest.approx(
        [record["metrics"]["mean"] for record in old["records"][:-1]], abs=1e-4
    )
    assert new["settings"]["conversion"] == old["settings"]["conversion"]
    assert new["settings"]["layer_shifts"].keys() == old["settings"]["layer_shifts"].keys()


def test_a_log_and_the_result_of_nabn_sensitivity(tmp_path: Path) -> None:
    def mark(lines: list[Any]) -> None:
        lines[-1]["loss"] = MARK

    _marked("sensitivity/sensitivity.jsonl", tmp_path / "out", mark)
    files.sensitivity(tmp_path / "out", "--resume")
    old = json.loads((OLD / "sensitivity" / "sensitivity.json").read_text())
    new = json.loads((tmp_path / "out" / "sensitivity.json").read_text())
    losses = [new["digital"]["mean"] - record["metrics"]["mean"] for record in new["records"]]
    assert losses == pytest.approx([entry["loss"] for entry in old["losses"][:-1]] + [MARK], abs=1e-12)
    page = tmp_path / "page"
    shutil.copytree(OLD / "sensitivity", page / "sensitivity")
    shutil.copytree(OLD / "test", page / "test")
    files.command("report", page)
    text = (page / "report.html").read_text()
    assert "(whole network)" in text and "uncalibrated" in text


def test_a_log_of_nabn_sweep(tmp_path: Path) -> None:
    def mark(lines: list[Any]) -> None:
        lines[-1]["record"]["metrics"]["accuracy"] = MARK
        versions = {name: importlib.metadata.version(name) for name in ("aihwkit", "torch", "numpy", "pillow")}
        lines[0]["sweep"]["versions"] = {
            "aihwkit_nabn": nabn.__version__,
            **versions,
            "python": platform.python_version(),
        }

    path = _marked("sweep/records.jsonl", tmp_path / "out", mark)
    before = path.read_bytes()
    files.sweep(tmp_path / "out")
    assert path.read_bytes().startswith(before)
    result = nabn.EvaluationResult.from_json(tmp_path / "out" / "digits" / "results.json")
    assert [record.metrics["accuracy"] for record in result.records] == [50.0, 70.0, 80.0, MARK]


def test_a_chip() -> None:
    network = tiny_network()
    again = nabn.load_chip(network, OLD / "chip.safetensors")
    assert nabn.chip_info(OLD / "chip.safetensors")["seed"] == 3
    with torch.no_grad():
        old, new = again(tiny_images()), files.chip()(tiny_images())
    assert torch.allclose(old, new, atol=1e-4)
