"""torchvision's segmenters: weights, masks, calibration, training, on drawn shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model, segmentation

import aihwkit_nabn as nabn
from aihwkit_nabn.data.segmentation import open_masks
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from aihwkit_nabn.workloads._segmentation_images import TorchvisionPipeline
from aihwkit_nabn.workloads._torchvision_segmenters import build_segmenter
from aihwkit_nabn.workloads.torchvision_segmentation import SEGMENTERS
from tests.workloads.scenes import draw_masks, settled

LRASPP = "lraspp_mobilenet_v3_large"
RECIPE = Recipe(epochs=1, learning_rate=0.001, clip_sigma=2.5, seed=0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_masks(tmp_path / "masks")


def _load(
    data: Path, name: str = LRASPP, *, test_images: int | None = None, batch: int | None = None, **given: Any
) -> Workload:
    settings = LoadSettings(test_images=test_images, batch_size=batch, loader_workers=0)
    options = {"checkpoint": "random", "data": str(data), "image_size": 64, **given}
    return load_workload(f"torchvision:{name}", settings, **options)


def test_a_network_that_knows_all_scores_a_hundred_at_the_size_of_the_masks(root: Path) -> None:
    (root / "classes.txt").write_text("background\ncircle\nrectangle\ntriangle\n")
    workload = _load(root, per_class=True, batch=2)
    part = open_masks(root).val
    truth = [part.mask(place, 4, 255) for place in range(3)]
    pipeline = TorchvisionPipeline(size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), ignored=255)
    seen = [pipeline.prepared(Image.open(path).convert("RGB")) for path in part.images]
    sizes: list[int] = []

    class Knowing(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            sizes.append(len(images))
            places = [next(i for i, one in enumerate(seen) if torch.equal(one, image)) for image in images]
            one_hot = [nn.functional.one_hot(truth[place], 4).movedim(-1, 0).float() for place in places]
            return {"out": torch.stack(one_hot)}

    numbers = workload.eval_fn(Knowing())
    assert numbers["mIoU"] == numbers["aAcc"] == numbers["mAcc"] == 100.0 and next(iter(numbers)) == "mIoU"
    assert numbers["mIoU/background"] == 100.0 and sorted(sizes) == [1, 2]
    assert "4 classes" in workload.description[0]
    assert workload.facts == {"test_images": 3, "setup": {"ignore_index": 255}}
    one = _load(root, test_images=1)
    assert one.facts["test_images"] == 1 and one.eval_fn(one.model)["mIoU"] < 100


def test_classes_of_random_weights_are_those_of_the_masks(root: Path) -> None:
    workload = _load(root)
    with torch.no_grad():
        assert workload.model(torch.zeros(1, 3, 64, 64))["out"].shape[1] == 4
    with pytest.raises(NabnError, match="class index 3, but the network has 3 classes"):
        (root / "classes.txt").write_text("a\nb\nc\n")
        _load(root)


def test_pixels_to_ignore_can_be_of_another_value(root: Path) -> None:
    for path in (root / "masks").rglob("*.png"):
        values = np.asarray(Image.open(path)).copy()
        values[:40] = 4
        Image.fromarray(values).save(path)
    workload = _load(root, ignore_index=4)
    assert workload.facts["setup"] == {"ignore_index": 4} and "pixels of 4 count for nothing" in workload.description[1]
    with torch.no_grad():
        assert workload.model(torch.zeros(1, 3, 64, 64))["out"].shape[1] == 4
    with pytest.raises(NabnError, match="takes no ignore_index"):
        load_workload("torchvision:resnet18", checkpoint="random", data=str(root), ignore_index=4)


@pytest.mark.slow
def test_weights_bring_their_classes(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(get_model("fcn_resnet50", weights=None, weights_backbone=None, num_classes=6, aux_loss=True))
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    workload = _load(root, "fcn_resnet50", checkpoint=str(tmp_path / "w.pth"), test_images=1)
    assert "6 classes" in workload.description[0] and workload.model.aux_classifier is None
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = workload.model(image)["out"], model(image)["out"]
    assert torch.equal(ours, theirs) and float(ours.std()) > 0.01
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(NabnError, match=r"tell 6 classes apart, but .*classes\.txt has 4 names"):
        _load(root, "fcn_resnet50", checkpoint=str(tmp_path / "w.pth"))
    with pytest.raises(NabnError, match="of another network|is it of another model"):
        _load(root, LRASPP, checkpoint=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    "name", [name if name == LRASPP else pytest.param(name, marks=pytest.mark.slow) for name in SEGMENTERS]
)
def test_a_chip_without_noise_segments_as_the_network_does(name: str) -> None:
    torch.manual_seed(0)
    model = settled(build_segmenter(name, 5))
    images = torch.randn(2, 3, 64, 72)
    analog = nabn.convert_to_noise_aware(
        model, nabn.presets.GaussianWeightNoisePreset(sigma=0.0), example_inputs=images
    )
    nabn.program_chip(analog, seed=0)
    with torch.no_grad():
        digital, chip = model(images)["out"], analog(images)["out"]
    assert float(digital.std()) > 1e-3 and torch.allclose(digital, chip, atol=1e-4 * float(digital.abs().max()))
    assert analog.conversion_report.analog_share == 1.0 and not analog.conversion_report.refused


def test_calibration_images_go_through_the_pipeline_of_test_or_training(root: Path) -> None:
    Image.new("RGB", (120, 60)).save(root / "images/train/wide.png")
    workload = _load(root)
    plain = list(workload.calibration(CalibrationRequest(n=5)))
    assert sorted(tuple(batch.shape) for batch in plain) == [(1, 3, 64, 128), (4, 3, 64, 64)]
    augmented = [list(workload.calibration(CalibrationRequest(n=5, images="augmented", seed=s))) for s in (0, 0, 1)]
    side = round(64 * 480 / 520)
    assert {tuple(batch.shape[1:]) for batch in augmented[0]} == {(3, side, side)}
    same = [
        all(torch.equal(a, b) for a, b in zip(augmented[0], other, strict=True))
        for other in augmented[1:]
        if len(other) == len(augmented[0])
    ]
    assert same[0] is True and not all(same)


def test_a_mask_moves_with_its_image() -> None:
    pipeline = TorchvisionPipeline(size=40, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), ignored=255)
    values = np.zeros((40, 60), dtype=np.uint8)
    values[10:30, 5:25] = 1
    image = Image.fromarray(np.repeat(values[..., None] * 255, 3, axis=2))
    moved = [pipeline.labelled(image, torch.from_numpy(values).long()) for _ in range(20)]
    side = round(40 * 480 / 520)
    for seen, mask in moved:
        assert seen.shape == (3, side, side) and mask.shape == (side, side)
        inside = mask != 255
        assert float(((seen[0] > 0.5) == (mask == 1))[inside].float().mean()) > 0.9
        assert not seen[:, ~inside].any()
    assert any((mask == 255).any() for _, mask in moved) and len({int((mask == 1).sum()) for _, mask in moved}) > 5


@pytest.mark.slow
def test_training_moves_the_network_and_calibration_brings_a_chip_back(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(settled(build_segmenter(LRASPP, 4)).state_dict(), tmp_path / "w.pth")
    workload = _load(root, checkpoint=str(tmp_path / "w.pth"))
    assert workload.train is not None and workload.check_recipe is not None
    workload.check_recipe(RECIPE)
    trained = workload.train(TrainingNoise(std=0.02), None, RECIPE)
    assert trained.report.images == 4 and trained.report.losses[0] > 0
    before, after = workload.model.state_dict(), trained.model.state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    result = workload.evaluate(
        [nabn.Scenario(name="x", rpu_config=nabn.presets.GaussianWeightNoisePreset(sigma=0.05))],
        nabn.evaluation.methods.method_specs(["none", "population", "auto"]),
        CalibrationRequest(n=4),
        chips=1,
        progress=False,
    )
    assert result.metrics[0] == "mIoU" and {record.method for record in result.records} >= {"population", "auto"}
    (root / "masks/train/00000.png").unlink()
    with pytest.raises(NabnError, match=r"00000\.png has no mask"):
        workload.check_recipe(RECIPE)


def test_masks_are_checked_before_anything_is_measured(root: Path) -> None:
    Image.new("L", (5, 5)).save(root / "masks/val/00001.png")
    with pytest.raises(NabnError, match="has 5 x 5 pixels, its image 00001.png has 96 x 96"):
        _load(root)
    for path in (root / "masks/val").iterdir():
        Image.new("L", (96, 96), 255).save(path)
    (root / "classes.txt").write_text("a\nb\n")
    with pytest.raises(NabnError, match="no pixel of the masks to be tested on has a class"):
        _load(root)
    with pytest.raises(NabnError, match=r"needs data: the folder; segmentation data is images/train"):
        load_workload(f"torchvision:{LRASPP}", checkpoint="random")


def test_torchvisions_own_names_are_taken(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(build_segmenter(LRASPP, 21).state_dict(), tmp_path / "w.pth")
    own = segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1
    monkeypatch.setattr("aihwkit_nabn.workloads._torchvision_files.published_weights", lambda name, file: own)
    workload = _load(root, checkpoint=str(tmp_path / "w.pth"), per_class=True)
    assert {"mIoU/__background__", "mIoU/aeroplane"} <= workload.eval_fn(workload.model).keys()
