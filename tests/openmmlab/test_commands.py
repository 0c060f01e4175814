"""`nabn test` and `nabn inspect` on configs."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import pytest
import torch

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.config import load_config
from aihwkit_nabn.openmmlab.run import prepare

YOLOX = "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py"


def _refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli.app, arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("nabn: error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert message in error


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_a_config_end_to_end(name, request, tmp_path, capsys) -> None:
    case, out = request.getfixturevalue(name), tmp_path / "out"
    arguments = ["test", str(case.path), str(case.checkpoint), "--noise", "gaussian:sigma=0.05", "--noise", "pcm"]
    arguments += [
        "--time",
        "1d",
        "--methods",
        "none,paired",
        "--chips",
        "1",
        "--calibration-images",
        "4",
        "--out",
        str(out),
    ]
    assert run(cli.app, [*arguments, "--cfg-options", "env_cfg.cudnn_benchmark=False", "nabn_mark=3"]) == 0
    printed = capsys.readouterr().out
    assert "uncalibrated" in printed and "paired" in printed and "Written to" in printed
    content = json.loads((out / "results.json").read_text())
    assert {record["scenario"] for record in content["records"]} == {"gaussian:sigma=0.05", "pcm, 1d"}
    assert {record["method"] for record in content["records"]} == {"uncalibrated", "paired"}
    assert {"table.csv", "table.md"} < {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoint": "nowhere.pth"}, "checkpoint 'nowhere.pth' does not exist"),
        ({"config": "nowhere.py"}, "config 'nowhere.py' does not exist"),
        ({"noise": "gausian"}, "unknown preset 'gausian', did you mean 'gaussian'?"),
        ({"methods": "none,piared"}, "did you mean 'paired'"),
        ({"time": "1 fortnight"}, "time must be seconds >= 0"),
        ({"launcher": "rocket"}, "launcher must be one of none, pytorch, slurm, mpi, got 'rocket'"),
        ({"data": "."}, "takes no --data; use cfg_options test_dataloader.dataset.data_root=FOLDER"),
        ({"device": "cpu"}, "takes no --device; use CUDA_VISIBLE_DEVICES"),
        ({"cfg-options": "novalue"}, "cfg-options must be KEY=VALUE"),
        ({"cfg-options": "test_dataloader=None"}, "has no test_dataloader"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(changed, message, detector, tmp_path, capsys) -> None:
    given = {"noise": "pcm", "methods": "none", "out": str(tmp_path / "out"), **changed}
    config, checkpoint = given.pop("config", str(detector.path)), given.pop("checkpoint", str(detector.checkpoint))
    options = [text for name, value in given.items() for text in (f"--{name}", value)]
    _refused(["test", config, checkpoint, *options], message, capsys)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("test_evaluator.metric=box", "cannot be run: metric should be one of"),
        ("model.type=Retina", "cannot be run: Retina is not in the mmdet::model registry"),
        ("test_dataloader.dataset.pipeline.0.type=Load", "cannot be run: Load is not in the mmdet"),
        ("train_dataloader=None", "cannot be run: train_dataloader, train_cfg, and optim_wrapper should be"),
    ],
)
def test_what_a_config_cannot_build_is_said_in_one_line(option, message, detector, tmp_path, capsys) -> None:
    arguments = ["test", str(detector.path), str(detector.checkpoint), "--noise", "pcm", "--out", str(tmp_path)]
    assert run(cli.app, [*arguments, "--cfg-options", option]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nabn: error: ") and message in error


def test_a_number_of_test_images_needs_a_test_set(detector, tmp_path, capsys) -> None:
    arguments = [
        "sensitivity",
        str(detector.path),
        str(detector.checkpoint),
        "--test-images",
        "2",
        "--out",
        str(tmp_path),
    ]
    _refused([*arguments, "--cfg-options", "test_dataloader=None"], "has no test_dataloader", capsys)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "list", "foreign", "nothing"])
def test_files_that_are_no_checkpoint_of_this_network(kind, detector, tmp_path, capsys) -> None:
    file = tmp_path / "given.pth"
    if kind in ("empty", "text", "cut"):
        whole = detector.checkpoint.read_bytes()
        file.write_bytes({"empty": b"", "text": b"hello world\n" * 10, "cut": whole[: len(whole) // 2]}[kind])
    else:
        content = {"list": [1], "foreign": {"layer1.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, "nothing": {}}[kind]
        torch.save(content, file)
    message = {"list": "must hold a state dict", "foreign": "another network", "nothing": "holds no state dict"}
    arguments = ["test", str(detector.path), str(file), "--noise", "pcm", "--methods", "none", "--chips", "1"]
    assert run(cli.app, [*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nabn: error: ") and message.get(kind, "damaged or") in error


def test_method_options_reach_the_loop_and_its_pictures(detector, tmp_path, capsys, monkeypatch) -> None:
    from aihwkit_nabn.evaluation import examples, protocol

    drawn = []

    def spy(*args, **kwargs):
        drawn.append((kwargs["method"], kwargs.get("shrink")))
        return calibrate(*args, **kwargs)

    calibrate = protocol.calibrate
    monkeypatch.setattr(protocol, "calibrate", spy)
    # The last of the rivals is the best one, whatever they measured.
    chosen = lambda *values, **keys: list(values[0])[-1] if keys else max(*values)  # noqa: E731
    monkeypatch.setattr(examples, "max", chosen, raising=False)
    out = tmp_path / "out"
    arguments = ["test", str(detector.path), str(detector.checkpoint), "--noise", "gaussian:sigma=0.1,inp_bits=8"]
    arguments += ["--methods", "paired,paired:shrink=0", "--chips", "1", "--calibration-images", "4", "--examples", "1"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the input range of layer")
        assert run(cli.app, [*arguments, "--out", str(out)]) == 0
    methods = json.loads((out / "results.json").read_text())["settings"]["methods"]
    assert [(entry["label"], entry["options"]) for entry in methods[1:]] == [
        ("paired", {}),
        ("paired (shrink=0)", {"shrink": 0}),
    ]
    assert json.loads((out / "examples" / "examples.json").read_text())["method"] == "paired (shrink=0)"
    assert drawn == [("paired", None), ("paired", 0), ("paired", 0)], "measured, measured, drawn"


def test_stray_arguments_and_missing_data(detector, capsys) -> None:
    _refused(["test", str(detector.path), "x.pth", "a=1", "--noise", "pcm"], "unexpected argument 'a=1'", capsys)
    _refused(["test", "torchvision:resnet18", "random", "--noise", "pcm"], "torchvision:resnet18 needs --data", capsys)
    torchvision = ["test", "torchvision:resnet18", "random", "--noise", "pcm", "--data", "."]
    _refused([*torchvision, "--cfg-options", "a=1"], "torchvision:resnet18 takes no --cfg-options", capsys)


def test_the_prepared_config(detector) -> None:
    config = load_config(detector.path)
    config.test_cfg = {"type": "AnalogTestLoop", "rpu_config": "pcm", "fp16": True}
    prepared = prepare(config, str(detector.checkpoint), workers=0, work_dir="here")
    assert prepared.load_from == str(detector.checkpoint) and prepared.work_dir == "here"
    assert prepared.test_cfg == {"type": "TestLoop", "fp16": True} and prepared.test_dataloader.num_workers == 0
    assert config.test_cfg.type == "AnalogTestLoop"
    config.default_scope = "mmpose"
    with pytest.raises(NabnError, match="mmpose"):
        prepare(config, str(detector.checkpoint))


def test_inspect_a_config(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    arguments = ["inspect", YOLOX, "--noise", "gaussian:sigma=0.1", "--exclude", "bbox_head"]
    assert (
        run(
            cli.app,
            [*arguments, "--cfg-options", "model.backbone.widen_factor=0.25", "model.neck.in_channels=[64,128,256]"],
        )
        == 0
    )
    printed = capsys.readouterr().out
    for expected in ("Conv2d", "BatchNorm2d", "excluded", "bbox_head", "on tiles", "matrix weights", "1 modules stay"):
        assert expected in printed


def test_inspect_lists_layers_of_torchvision_models(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert run(cli.app, ["inspect", "torchvision:squeezenet1_1", "--layers"]) == 0
    printed = capsys.readouterr().out
    assert "features.0" in printed and "0 modules stay digital; 0 refused" in printed


def test_inspect_refuses(capsys) -> None:
    _refused(["inspect", "resnet18"], "unknown workload 'resnet18'", capsys)
    _refused(["inspect", "torchvision:resnt18"], "did you mean 'resnet18'", capsys)
    _refused(["inspect", "torchvision:resnet18", "--cfg-options", "a=1"], "takes no --cfg-options", capsys)
    _refused(["inspect", YOLOX, "--exclude", "no_such_layer"], "no_such_layer", capsys)
    _refused(["inspect", YOLOX, "a=1"], "unexpected argument", capsys)


def test_without_openmmlab_the_install_line_is_given(capsys, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name.startswith("mm") else find(name, *a))
    for command in (["inspect", YOLOX], ["test", YOLOX, "x.pth", "--noise", "pcm", "--out", "unused"]):
        _refused(command, "mmengine is not installed; run: pip install 'aihwkit-nabn[openmmlab]'", capsys)
    assert not Path("unused").exists()


def test_an_interrupted_run_of_a_config_goes_on(detector, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["test", str(detector.path), str(detector.checkpoint), "--noise", "gaussian:sigma=0.05", "--chips", "2"]
    arguments += ["--methods", "none,paired", "--calibration-images", "4", "--loader-workers", "0", "--out", str(out)]
    arguments += ["--cfg-options", "test_dataloader.dataset.indices=2"]
    assert run(cli.app, arguments) == 0
    table, file = (out / "table.md").read_text(), out / "records.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4 + 4  # set-up, digital, what calibrating changed, conversion
    file.write_text("".join(lines[:5]) + lines[5][:20])
    assert run(cli.app, [*arguments, "--resume"]) == 0
    assert (out / "table.md").read_text() == table
    again = file.read_text().splitlines(keepends=True)
    assert again[:5] == lines[:5] and len(again) == len(lines)
    _refused([*arguments, "--resume", "--seed", "1"], "was made with --seed = 0, not 1", capsys)
    changed = [*arguments[:-1], "test_dataloader.dataset.indices=3"]
    _refused([*changed, "--resume"], "was made with test_dataloader = ", capsys)
    for option, part in (
        ("model.test_cfg.score_thr=0.3", "network"),
        ("train_dataloader.batch_size=1", "train_dataloader"),
    ):
        _refused([*arguments, option, "--resume"], f"was made with {part} = ", capsys)
    assert file.read_text().splitlines(keepends=True) == again
