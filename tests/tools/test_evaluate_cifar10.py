from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.resnet_cifar import CifarResNet
from aihwkit_nabn.errors import UnknownNameError

Load = Callable[[str], ModuleType]


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Return a stand-in for the data: a few random images and an untrained network."""
    folder = tmp_path / "data" / "cifar10_subset"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 24), ("test", 12)):
        arrays[f"{part}_images"] = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        arrays[f"{part}_labels"] = generator.integers(0, 10, count)
    np.savez(folder / "cifar10_subset.npz", **arrays)
    torch.manual_seed(0)
    torch.save(CifarResNet(blocks=3).state_dict(), folder / "resnet20_cifar10.pth")
    return tmp_path / "data"


def _arguments(root: Path, out: Path, **changed: str) -> list[str]:
    options = {"methods": "population,batch,paired", "settings": "additive-0.06,pcm-1h", "chips": "1"}
    options["calibration-images"] = "8"
    options |= {name.replace("_", "-"): value for name, value in changed.items()}
    given = [text for name, value in options.items() for text in (f"--{name}", value)]
    return ["--data-root", str(root), "--out", str(out), *given]


def _records(out: Path) -> list[tuple[str, int, str, float]]:
    records = json.loads((out / "results.json").read_text())["records"]
    return [(r["scenario"], r["chip_seed"], r["method"], r["metrics"]["accuracy"]) for r in records]


def test_settings_and_methods_are_those_of_the_task(load_tool: Load) -> None:
    tool = load_tool("evaluate_cifar10")
    scenarios = tool.choose_scenarios([])
    assert [scenario.name for scenario in scenarios] == [
        *("additive 0.02", "additive 0.06", "additive 0.10", "multiplicative 0.10", "multiplicative 0.30"),
        *("PCM, 1 hour", "PCM, 1 day", "PCM, 1 year"),
    ]
    labels = [spec.label for spec in tool.choose_methods([])]
    assert labels[0] == "uncalibrated" and {"batch", "online"} <= set(labels)
    for name in CALIBRATION_METHODS.names():
        if CALIBRATION_METHODS.get(name).needs_batches:
            assert {f"{name}, plain", f"{name}, augmented"} <= set(labels)
    with pytest.raises(UnknownNameError, match="did you mean 'additive-0.06'"):
        tool.choose_scenarios(["additive-0.6"])


@pytest.mark.slow
def test_run_stop_and_resume(load_tool: Load, data_root: Path, tmp_path: Path) -> None:
    tool = load_tool("evaluate_cifar10")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(tool.app, _arguments(data_root, whole, chips="2")) == 0
    labels = [
        "uncalibrated",
        "population, plain",
        "population, augmented",
        "batch",
        "paired, plain",
        "paired, augmented",
    ]
    assert [record[:3] for record in _records(whole)] == [
        (name, chip, label) for name in ("additive 0.06", "PCM, 1 hour") for chip in (0, 1) for label in labels
    ]
    # A run of one chip that was cut off in the middle of its second setting.
    assert run(tool.app, _arguments(data_root, halves)) == 0
    lines = (halves / "records.jsonl").read_text().splitlines()
    (halves / "records.jsonl").write_text("\n".join(lines[:-3]) + '\n{"record": {"scen')
    assert run(tool.app, [*_arguments(data_root, halves, chips="2"), "--resume"]) == 0
    assert _records(halves) == _records(whole)
    # With everything done, nothing is evaluated again.
    before = (halves / "records.jsonl").read_text()
    assert run(tool.app, [*_arguments(data_root, halves, chips="2"), "--resume"]) == 0
    assert (halves / "records.jsonl").read_text() == before


def test_resuming_with_another_set_up_is_refused(
    load_tool: Load, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("evaluate_cifar10")
    arguments = _arguments(data_root, tmp_path / "out", settings="additive-0.02", methods="none")
    assert run(tool.app, arguments) == 0
    capsys.readouterr()
    assert run(tool.app, [*arguments, "--resume", "--seed", "5"]) == 2
    assert "was made with seed = 0, not 5" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["cifar10_subset.npz", "resnet20_cifar10.pth"])
def test_missing_data_is_named(
    missing: str, load_tool: Load, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data_root / "cifar10_subset" / missing).unlink()
    assert run(load_tool("evaluate_cifar10").app, _arguments(data_root, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert missing in error and "does not exist" in error and error.count("\n") == 1
