"""Every kind of workload, asked for the same things."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aihwkit_nabn.data.jpeg import compress_images
from aihwkit_nabn.errors import MissingDependencyError, NabnError, UnknownNameError
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.workloads import (
    WORKLOADS,
    CalibrationRequest,
    LoadSettings,
    Workload,
    WorkloadKind,
    load_workload,
)
from aihwkit_nabn.workloads.digits import CALIBRATION_BATCH


@pytest.fixture
def workload() -> Workload:
    return load_workload("digits")


def images(workload: Workload, **request: Any) -> torch.Tensor:
    return torch.cat(list(workload.calibration(CalibrationRequest(**request))))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("resnet18", {}, "unknown workload 'resnet18'.*known: FILE.py, .*torchvision:NAME"),
        ("torchvision:", {}, "must be written torchvision:NAME"),
        ("torchvision", {}, "must be written torchvision:NAME"),
        ("digits:1", {}, "digits takes no name"),
        ("digit", {}, "did you mean 'digits'"),
        ("config", {}, "unknown workload 'config'"),
        ("torchvison:resnet18", {}, "did you mean 'torchvision:NAME'"),
        (
            "torchvision:resnet51",
            {"checkpoint": "random", "data": "."},
            "did you mean 'resnet50'|did you mean 'resnet101'",
        ),
        ("torchvision:resnet18", {"checkpoint": "random"}, "needs data: the folder with train/CLASS/images"),
        ("torchvision:resnet18", {"data": "."}, "needs checkpoint: the file with its trained weights"),
        ("torchvision:resnet18", {"chekpoint": "x"}, "takes no chekpoint, did you mean 'checkpoint'"),
        ("digits", {"data": "x"}, "digits takes no data; it takes no options"),
        ("a.py", {"checkpoint": "x", "data": "y"}, "takes no data; use cfg_options test_dataloader"),
        ("a.py", {}, "needs checkpoint"),
        (3, {}, "a workload must be text"),
    ],
)
def test_one_clear_error(text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        load_workload(text, **options)


@pytest.mark.parametrize("field", ["test_images", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_settings_are_checked(field: str, value: Any) -> None:
    with pytest.raises(NabnError, match=field):
        LoadSettings(**{field: value})


def test_a_smaller_set_is_the_beginning_of_a_larger_one(workload: Workload) -> None:
    many = images(workload, n=100)
    assert torch.equal(images(workload, n=30), many[:30])
    augmented = images(workload, n=100, images="augmented")
    assert torch.equal(images(workload, n=30, images="augmented"), augmented[:30])
    assert not torch.equal(augmented, many) and len({tuple(image.flatten().tolist()) for image in many}) == 100
    assert not torch.equal(images(workload, n=30, seed=1), many[:30])
    assert torch.equal(images(workload, n=30, batch_size=7), many[:30])
    assert [len(batch) for batch in workload.calibration(CalibrationRequest(n=70))] == [CALIBRATION_BATCH, 6]


def test_sets_can_be_run_through_again(workload: Workload) -> None:
    for request in (CalibrationRequest(n=9), CalibrationRequest(n=9, images="augmented")):
        batches = workload.calibration(request)
        assert torch.equal(torch.cat(list(batches)), torch.cat(list(batches)))


def test_sources(workload: Workload) -> None:
    train = images(workload, n=None)
    for chip in (0, 3, 13):
        chosen = images(workload, n=20, source="one_class", chip_seed=chip)
        assert all((train == image).flatten(1).all(1).any() for image in chosen)
    first, second = (images(workload, n=20, source="one_class", chip_seed=chip) for chip in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, images(workload, n=20, source="one_class", chip_seed=10)), "ten classes"
    other = images(workload, n=20, source="other_data")
    assert other.shape == (20, 1, 8, 8) and not any((train == image).flatten(1).all(1).any() for image in other)
    with pytest.raises(NabnError, match="calibration must be one of .*did you mean 'one_class'"):
        workload.calibration(CalibrationRequest(source="one class"))


def test_fewer_images_than_asked_for(workload: Workload) -> None:
    assert len(images(workload, n=5000)) == len(images(workload, n=None))
    with pytest.raises(NabnError, match="samples must be at most .*one_class .chip 3., got 500"):
        workload.calibration(CalibrationRequest(n=500, exact=True, source="one_class", chip_seed=3))


def test_compressed(workload: Workload) -> None:
    assert workload.compressed is not None
    small = workload.compressed(20)
    assert torch.equal(images(small, n=12), compress_images(images(workload, n=12), 20))
    assert small.eval_fn(small.model) != workload.eval_fn(workload.model)
    pairs = list(small.calibration(CalibrationRequest(n=70, reference_skips=("CompressJPEG",))))
    assert [len(clean) for clean, _ in pairs] == [CALIBRATION_BATCH, 6]
    seen: dict[str, torch.Tensor] = {}
    for name, run in (("chip", small.forward_fn), ("reference", small.reference_forward_fn)):
        assert run is not None
        run(lambda batch, name=name: seen.update({name: batch}), pairs[0])  # type: ignore[arg-type,misc]
    assert torch.equal(seen["chip"], compress_images(seen["reference"], 20))
    assert torch.equal(seen["reference"], images(workload, n=70)[:CALIBRATION_BATCH])
    with pytest.raises(NabnError, match="reference_skips of a classifier"):
        workload.calibration(CalibrationRequest(reference_skips=("CompressJPEG",)))
    with pytest.raises(NabnError, match="JPEG quality"):
        workload.compressed(0)


def test_test_images_are_those_that_were_asked_for(workload: Workload) -> None:
    few = load_workload("digits", LoadSettings(test_images=40, seed=2))
    assert few.facts["test_images"] == 40 and few.test_set is not None and workload.test_set is not None
    chosen, everything = few.test_set(), workload.test_set()
    assert len(chosen) == 40 and len(everything) == workload.facts["test_images"]
    assert all((everything.images == image).flatten(1).all(1).any() for image in chosen.images)
    with torch.no_grad():
        hits = (few.model(chosen.images).argmax(1) == chosen.labels).float().mean()
    assert few.eval_fn(few.model)["accuracy"] == pytest.approx(100 * float(hits))


def test_cifar10_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NabnError, match=r"cifar10 needs .*cifar10_subset.npz, which does not exist; data"):
        load_workload("cifar10", data=str(tmp_path))
    monkeypatch.setenv("NABN_DATA", str(tmp_path / "there"))
    with pytest.raises(NabnError, match=r"there/cifar10_subset"):
        load_workload("cifar10")


def test_digits_and_their_image_folder_give_the_same_images(tmp_path: Path) -> None:
    """One rule chooses images, in memory and in files."""
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(6):
                shade = np.full((32, 32, 3), 20 * number + 100 * (label == "b"), dtype=np.uint8)
                Image.fromarray(shade).save(tmp_path / part / label / f"{number}.png")
    options = {"checkpoint": "random", "data": str(tmp_path), "image_size": 32}
    folder = load_workload("torchvision:resnet18", LoadSettings(loader_workers=0), **options)
    found = images(folder, n=5, seed=4)
    assert torch.equal(found, images(folder, n=12, seed=4)[:5]) and len(found.unique(dim=0)) == 5
    again = load_workload("torchvision:resnet18", LoadSettings(loader_workers=2, batch_size=3), **options)
    assert torch.equal(images(again, n=5, seed=4), found), "however they are read"


def test_a_workload_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "my_workload.py"
    file.write_text(
        "import torch\n"
        "from aihwkit_nabn.workloads import WORKLOADS, Workload, WorkloadKind\n"
        "def load(name, settings, *, scale=1.0):\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 2))\n"
        "    return Workload(\n"
        "        model=model.eval(),\n"
        "        eval_fn=lambda m: {'mean': scale * float(m(torch.ones(3, 4)).mean())},\n"
        "        calibration=lambda request: [torch.ones(2, 4)],\n"
        "    )\n"
        "kind = WorkloadKind(load=load, options={'scale': lambda field, value: float(value)}, named=True)\n"
        "WORKLOADS.register('mine')(kind)\n"
    )
    import_extension(str(file))
    try:
        workload = load_workload("mine:x", scale=2.0)
        assert workload.eval_fn(workload.model)["mean"] != 0.0
        with pytest.raises(NabnError, match="mine:x takes no size; it takes scale"):
            load_workload("mine:x", size=3)
    finally:
        WORKLOADS.unregister("mine")
    with pytest.raises(UnknownNameError):
        load_workload("mine:x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"n": "3"}, "n must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"images": "x"}, "images must be 'plain' or 'augmented', got 'x'"),
        ({"seed": -1}, "seed must be"),
        ({"chip_seed": "x"}, "chip_seed must be"),
        ({"reference_skips": "CompressJPEG"}, "reference_skips must be a tuple"),
    ],
)
def test_requests_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        CalibrationRequest(**given)


def test_what_a_kind_returns_is_checked() -> None:
    WORKLOADS.register("returns_none")(WorkloadKind(load=lambda name, settings: None))  # type: ignore[arg-type,return-value]
    try:
        with pytest.raises(NabnError, match="'returns_none' must return a Workload, got None"):
            load_workload("returns_none")
    finally:
        WORKLOADS.unregister("returns_none")
    with pytest.raises(NabnError, match="settings must be LoadSettings"):
        load_workload("digits", {"seed": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("package", "target", "given"),
    [("timm", "timm:resnet18", {"checkpoint": "random"}), ("transformers", "transformers:nowhere", {})],
)
def test_without_an_extra_its_install_line_is_said(
    package: str, target: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    line = rf"{package} is not installed; run: pip install 'aihwkit-nabn\[{package}\]'"
    with pytest.raises(MissingDependencyError, match=line):
        load_workload(target, data=str(tmp_path), **given)
