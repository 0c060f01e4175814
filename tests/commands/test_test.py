from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.studies import run_study
from aihwkit_nabn.studies.grid import GridStudy

Folder = Callable[..., Path]


def _save_resnet18(path: Path, classes: int = 3) -> Path:
    torch.manual_seed(0)
    torch.save({"state_dict": torchvision.models.resnet18(num_classes=classes).state_dict()}, path)
    return path


def _arguments(folder: Path, weights: Path | str, out: Path, **changed: str | None) -> list[str]:
    options: dict[str, str | None] = {
        "--data": str(folder),
        "--noise": "gaussian:sigma=0.05",
        "--chips": "2",
        "--methods": "none,population,paired",
        "--image-size": "32",
        "--calibration-images": "8",
        "--loader-workers": "0",
        "--out": str(out),
    }
    options |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    given = [text for name, value in options.items() if value is not None for text in (name, value)]
    return ["test", "torchvision:resnet18", str(weights), *given]


def test_a_classifier_end_to_end(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _save_resnet18(tmp_path / "w.pth")
    out = tmp_path / "out"
    arguments = _arguments(shapes_folder(), weights, out) + ["--noise", "pcm", "--time", "1d", "--exclude", "fc"]
    assert run(cli.app, arguments) == 0
    text = capsys.readouterr().out
    for expected in (
        "resnet18",
        "3 classes",
        "some of the 12",
        "paired",
        "uncalibrated",
        "pcm",
        "matrix weights",
        "excluded",
    ):
        assert expected in text
    content = json.loads((out / "results.json").read_text())
    assert {record["scenario"] for record in content["records"]} == {"gaussian:sigma=0.05", "pcm, 1d"}
    assert {record["method"] for record in content["records"]} == {"uncalibrated", "population", "paired"}
    assert len(content["records"]) == 12
    assert {path.name for path in out.iterdir()} == {
        "accuracy.png",
        "records.jsonl",
        "results.json",
        "table.csv",
        "table.md",
    }


def test_noise_of_the_users_own(shapes_folder: Folder, tmp_path: Path) -> None:
    noise = tmp_path / "my_noise.py"
    noise.write_text(
        "from aihwkit_nabn.noise import WeightNoiseModel, register_noise_model\n"
        "@register_noise_model('cli_test_loss')\n"
        "class Loss(WeightNoiseModel):\n"
        "    strength = 'loss'\n"
        "    def __init__(self, loss: float = 0.1) -> None:\n"
        "        super().__init__()\n"
        "        self.loss = loss\n"
        "    def program(self, weights, w_max, generator):\n"
        "        return weights * (1 - self.loss)\n"
    )
    out = tmp_path / "out"
    arguments = _arguments(
        shapes_folder(count=1), "random", out, noise="cli_test_loss:loss=0.3", chips="1", methods="none"
    )
    assert run(cli.app, [*arguments, "--import", str(noise)]) == 0
    (record,) = json.loads((out / "results.json").read_text())["records"]
    assert record["scenario"] == "cli_test_loss:loss=0.3"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": "nowhere"}, "data folder 'nowhere' does not exist"),
        ({"noise": "gausian"}, "unknown preset 'gausian', did you mean 'gaussian'?"),
        ({"noise": "gaussian:sigma=-0.1"}, "sigma must be a finite number >= 0, got -0.1"),
        ({"noise": None}, "--noise"),
        ({"methods": "none,piared"}, "did you mean 'paired'"),
        ({"time": "-1"}, "time must be seconds >= 0"),
        ({"time": "1 fortnight"}, "time must be seconds >= 0"),
        ({"exclude": "layer9"}, "layer9"),
        ({"image_size": "0"}, "--image-size"),
        ({"device": "warp"}, "device must be"),
        ({"import": "no_such_file.py"}, "no such file"),
    ],
)
def test_bad_options(
    changed: dict[str, str | None],
    message: str,
    shapes_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = _arguments(shapes_folder(count=1), "random", tmp_path / "out", **changed)
    _refused(arguments, message, capsys)


def _refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("nabn: error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert message in error


def test_no_train_folder(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shapes_folder(count=1)
    (root / "train").rename(root / "training")
    _refused(_arguments(root, "random", tmp_path / "out"), "has no train/ folder", capsys)


def test_wrong_class_count(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _save_resnet18(tmp_path / "w.pth", classes=7)
    arguments = _arguments(shapes_folder(count=1), weights, tmp_path / "out")
    _refused(arguments, "tell 7 classes apart", capsys)


def test_unknown_model(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments(shapes_folder(count=1), "random", tmp_path / "out")
    arguments[1] = "torchvision:resnet_18"
    _refused(arguments, "did you mean 'resnet18'", capsys)


def test_missing_weights(shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments(shapes_folder(count=1), tmp_path / "none.pth", tmp_path / "out")
    _refused(arguments, "is not a file; give a .pth", capsys)


def _cut(path: Path, lines: int) -> str:
    """Leave what a run had that was killed in the middle of a write; return the file as it was."""
    whole = path.read_text()
    kept = whole.splitlines(keepends=True)
    path.write_text("".join(kept[:lines]) + kept[lines][: len(kept[lines]) // 2])
    return whole


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(
    shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from aihwkit_nabn.evaluation import protocol

    weights, out, folder = _save_resnet18(tmp_path / "w.pth"), tmp_path / "out", shapes_folder()
    assert run(cli.app, _arguments(folder, weights, out, chips="3")) == 0
    table, printed = (out / "table.md").read_text(), capsys.readouterr().out
    calibrated: list[str] = []
    calibrate = protocol.calibrate
    monkeypatch.setattr(
        protocol, "calibrate", lambda *a, method, **k: calibrated.append(method) or calibrate(*a, method=method, **k)
    )
    whole = _cut(
        out / "records.jsonl", 8
    )  # set-up, digital, the first chip's three and two of shifts, the second's first
    arguments = [*_arguments(folder, weights, out, chips="3"), "--resume"]
    assert run(cli.app, arguments) == 0
    assert calibrated == ["population", "paired"] * 2
    assert (out / "table.md").read_text() == table and capsys.readouterr().out == printed
    assert run(cli.app, arguments) == 0 and len(calibrated) == 4  # nothing is left to do
    assert len((out / "records.jsonl").read_text().splitlines()) == len(whole.splitlines())
    assert (out / "table.md").read_text() == table

    content = (out / "records.jsonl").read_text()
    torch.manual_seed(1)
    other = tmp_path / "other.pth"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), other)
    for changed, message in (
        (_arguments(folder, weights, out, calibration_images="4"), "--calibration-images = 8, not 4"),
        (_arguments(folder, other, out), "model = 'ResNet "),
        ([*_arguments(folder, weights, out), "--seed", "1"], "seed = 0, not 1"),
    ):
        assert run(cli.app, [*changed, "--resume"]) == 2
        error = capsys.readouterr().err
        assert message in error and "without --resume" in error and len(error.splitlines()) == 1
        assert (out / "records.jsonl").read_text() == content


def test_a_workload_of_the_users_own_goes_on_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(
        """
import torch
from torch import nn
from aihwkit_nabn.workloads import WORKLOADS, Workload, WorkloadKind

def load(name, settings, data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    x = torch.randn(32, 6)
    def accuracy(candidate):
        print("measured", file=open(data + "/count.txt", "a"))
        return {"accuracy": 100.0 * (candidate(x).argmax(1) == model(x).argmax(1)).double().mean().item()}
    return Workload(model=model, eval_fn=accuracy, calibration=lambda request: [x])

WORKLOADS.register("own")(WorkloadKind(load=load, options={"data": lambda field, value: value}, named=True))
"""
    )
    out = tmp_path / "out"
    arguments = ["test", "own:x", "--data", str(tmp_path), "--noise", "gaussian:sigma=0.3", "--chips", "2"]
    arguments += ["--methods", "none,paired", "--out", str(out), "--import", str(tmp_path / "own.py")]
    assert run(cli.app, arguments) == 0
    table, count = (out / "table.md").read_text(), tmp_path / "count.txt"
    assert len(count.read_text().splitlines()) == 5
    _cut(out / "records.jsonl", 7)
    assert run(cli.app, [*arguments, "--resume"]) == 0
    assert len(count.read_text().splitlines()) == 5 + 2 and (out / "table.md").read_text() == table


def test_every_mapping_that_differs_is_told(
    shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise settings with other tiles have another mapping; those with the same share a line."""
    noises = ["gaussian:sigma=0.1", "gaussian:sigma=0.2", "crossbar"]
    arguments = _arguments(shapes_folder(count=1), "random", tmp_path / "out", noise=None, chips="1", methods="none")
    assert run(cli.app, [*arguments, *(text for noise in noises for text in ("--noise", noise))]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("On tiles")]
    assert len(told) == 2 and told[0].startswith("On tiles (gaussian:sigma=0.1; gaussian:sigma=0.2): ")
    assert told[1].startswith("On tiles (crossbar")


def test_per_class_is_named_as_the_user_wrote_it(
    shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(shapes_folder(count=1), "random", tmp_path / "out")
    _refused(
        [*arguments, "--per-class"], "takes no --per-class; it takes CHECKPOINT, --data, --take, --image-size", capsys
    )


def test_old_names_of_options_work_and_say_what_they_are_called(
    shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = [*_arguments(shapes_folder(count=2), "random", tmp_path / "new", methods="none"), "--test-images", "4"]
    names = {"--calibration-images": "--max-samples", "--loader-workers": "--workers", "--test-images": "--limit"}
    old = [names.get(text, text) for text in new]
    old[old.index("--out") + 1] = str(tmp_path / "old")
    assert run(cli.app, new) == 0 and "is now called" not in capsys.readouterr().err
    assert run(cli.app, [*old[:-2], "--limit=4"]) == 0
    told = capsys.readouterr().err
    assert all(f"{before} is now called {now}; the old name works until 0.3" in told for now, before in names.items())
    records = [json.loads((tmp_path / name / "results.json").read_text())["records"] for name in ("new", "old")]
    assert [r["metrics"] for r in records[0]] == [r["metrics"] for r in records[1]]


def test_a_sweep_gives_the_numbers_of_a_test(
    shapes_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same request is measured alike, whichever command asks."""
    root, out = shapes_folder(), tmp_path / "out"
    arguments = _arguments(root, "random", out, batch_size="4", methods="none,population,paired", noise="pcm")
    assert run(cli.app, [*arguments, "--seed", "2", "--time", "1h"]) == 0
    content = {"version": 1, "name": "same", "seed": 2, "chips": 2, "noise": ["pcm"], "time": ["1h"], "samples": [8]}
    content |= {"methods": ["none", "population", "paired"], "test_batch": 4, "calibration_batch": 4}
    model = {"model": "torchvision:resnet18", "name": "m", "checkpoint": "random", "data": str(root), "image_size": 32}
    study = GridStudy({**content, "models": [model]})
    with study.open_log(tmp_path / "sweep") as log:
        run_study(study, log)
    found = {(r.method_name, r.chip_seed): r.metrics for r in log.records.values() if r.chip_seed is not None}
    expected = json.loads((out / "results.json").read_text())["records"]
    assert found == {(r["method_name"], r["chip_seed"]): r["metrics"] for r in expected} and len(found) == 6
