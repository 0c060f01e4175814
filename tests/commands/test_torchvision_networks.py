"""Every command takes torchvision's detectors and segmenters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from tests.workloads.scenes import draw_coco, draw_masks

SSD, LRASPP = "torchvision:ssdlite320_mobilenet_v3_large", "torchvision:lraspp_mobilenet_v3_large"
NOISE = ["--noise", "gaussian:sigma=0.05"]
FEW = ["--chips", "1", "--calibration-images", "2", "--loader-workers", "0", "--image-size", "64"]


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command and returns what it printed."""

    def show(*arguments: object) -> str:
        code = run(cli.app, [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return " ".join(printed.out.split())

    return show


@pytest.mark.parametrize("target", [SSD, LRASPP])
def test_inspect_needs_no_data(target: str, shown) -> None:
    assert "100.0% of" in shown("inspect", target)


@pytest.mark.slow
def test_a_detector_is_tested_class_by_class(shown, tmp_path: Path) -> None:
    root, out = draw_coco(tmp_path / "coco"), tmp_path / "out"
    command = ["test", SSD, "random", "--data", root, *NOISE, *FEW, "--methods", "none,paired", "--per-class"]
    text = shown(*command, "--examples", 2, "--out", out)
    drawn = json.loads((out / "examples" / "examples.json").read_text())
    titles = ["ground truth", "digital", "on the chip", "on the chip, paired"]
    assert [[panel["title"] for panel in image["panels"]] for image in drawn["images"]] == [titles] * 2
    assert [entry["name"] for entry in drawn["classes"]] == ["circle", "rectangle", "triangle"]
    assert "coco/bbox_mAP" in text and "of the 3 images in" in text and "verified on" in text
    content = json.loads((out / "results.json").read_text())
    metrics = [content["digital"], *(record["metrics"] for record in content["records"])]
    assert len(metrics) == 3 and all("coco/bbox_mAP/circle" in found for found in metrics)
    assert "coco/bbox_mAP" in shown(*command, "--out", out, "--resume")


@pytest.mark.slow
def test_a_segmenter_is_tested_with_another_value_to_ignore(shown, tmp_path: Path) -> None:
    root = draw_masks(tmp_path / "masks")
    (root / "classes.txt").write_text("background\ncircle\nrectangle\n")
    command = ["test", LRASPP, "random", "--data", root, *NOISE, *FEW, "--methods", "none,population"]
    text = shown(*command, "--ignore-index", 3, "--examples", 1, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out" / "examples").glob("*.jpg"))) == 4
    assert "mIoU" in text and "mask pixels of 3 count for nothing" in text and "3 classes" in text


@pytest.mark.slow
def test_layers_are_measured_in_two_processes_as_in_one(shown, tmp_path: Path) -> None:
    root = draw_masks(tmp_path / "masks", n_val=1)
    command = ["sensitivity", LRASPP, "random", "--data", root, *NOISE, *FEW, "--methods", "none"]
    for name in ("backbone.*", "classifier.cbr*", "classifier.scale*"):
        command += ["--exclude", name]
    found = []
    for jobs in (1, 2):
        out = tmp_path / f"out{jobs}"
        assert "classifier" in shown(*command, "--jobs", jobs, "--out", out)
        found.append(json.loads((out / "sensitivity.json").read_text())["records"])
    assert found[0] and len(found[0]) == len(found[1])
    first, second = ({(r["scenario"], r["method"]): r["metrics"] for r in records} for records in found)
    assert first.keys() == second.keys()
    assert all(first[key] == pytest.approx(second[key], abs=0.01) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "draw", "metric"), [(SSD, draw_coco, "coco/bbox_mAP"), (LRASPP, draw_masks, "mIoU")]
)
def test_training_with_labels_is_compared(target: str, draw, metric: str, shown, tmp_path: Path) -> None:
    root = draw(tmp_path / "data", n_val=1)
    text = shown(
        "compare", target, "random", "--data", root, *NOISE, *FEW, "--methods", "paired", "--epochs", 1, "--wrong", "2",
        "--learning-rate", 0.0001, "--jobs", 2, "--out", tmp_path / "out",
    )  # fmt: skip
    assert metric in text and "HWA" in text


@pytest.mark.slow
def test_a_sweep_takes_both_with_jpeg(shown, tmp_path: Path) -> None:
    coco, masks = draw_coco(tmp_path / "coco", n_val=1), draw_masks(tmp_path / "masks", n_val=1)
    (tmp_path / "sweep.yaml").write_text(
        f"""
version: 1
name: both
models:
  - {{model: "{SSD}", name: boxes, checkpoint: random, data: {coco}, image_size: 64}}
  - {{model: "{LRASPP}", name: masks, checkpoint: random, data: {masks}, image_size: 64, ignore_index: 255}}
noise: [gaussian:sigma=0.05]
time: [1d]
chips: 1
samples: [2]
jpeg: [none, 20]
methods: [none, population]
"""
    )
    text = shown("sweep", tmp_path / "sweep.yaml", "--jobs", 2, "--out", tmp_path / "out")
    assert "coco/bbox_mAP" in text and "mIoU" in text


def test_options_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw_coco(tmp_path / "coco")
    assert run(cli.app, ["test", SSD, "random", "--data", str(root), *NOISE, "--ignore-index", "3"]) == 2
    assert "takes no --ignore-index" in capsys.readouterr().err
    assert run(cli.app, ["test", SSD, "random", "--data", str(tmp_path / "x"), *NOISE]) == 2
    assert "does not exist" in capsys.readouterr().err
