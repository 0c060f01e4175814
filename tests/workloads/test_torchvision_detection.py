"""torchvision's detectors: weights, labels, calibration, training, on drawn shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration.matching import matching_points
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, load_workload
from aihwkit_nabn.workloads._detection_training import LabelledImages
from aihwkit_nabn.workloads._torchvision_detectors import _build, build_detector, set_size
from aihwkit_nabn.workloads.torchvision_detection import DETECTORS, has_masks, run_detector
from tests.workloads.scenes import RCNN, SSD, draw_coco, load_drawn, save_state, settled

SMALL = (SSD, RCNN)
PERFECT = nabn.presets.GaussianWeightNoisePreset(sigma=0.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files with weights whose scores differ from place to place, by network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    return {name: save_state(folder / f"{name}.pth", settled(_build(name, 4))) for name in SMALL}


def test_names_that_are_not_measured_are_told(coco: Path) -> None:
    assert {SSD, RCNN, "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"} <= set(DETECTORS)
    with pytest.raises(UnknownNameError, match="unknown torchvision network .*key points are not measured"):
        load_drawn(coco, "keypointrcnn_resnet50_fpn")
    with pytest.raises(UnknownNameError, match="did you mean 'fcos_resnet50_fpn'"):
        load_drawn(coco, "fcos_resnet50_fpm")
    with pytest.raises(NabnError, match=r"needs data: the folder; COCO's form is annotations/instances_train\.json"):
        load_workload(f"torchvision:{SSD}", checkpoint="random")
    with pytest.raises(NabnError, match="takes no ignore_index"):
        load_drawn(coco, ignore_index=3)
    with pytest.raises(NabnError, match="takes no per_class"):
        load_workload("torchvision:resnet18", checkpoint="random", data=str(coco), per_class=True)


def test_images_of_two_sizes_are_measured_and_described(coco: Path) -> None:
    workload = load_drawn(coco, per_class=True)
    assert not workload.model.training and workload.facts["test_images"] == 3
    text = "\n".join(workload.description)
    assert "3 classes" in text and "64 x 64 pixels" in text and "computed digitally" in text
    sizes: list[tuple[int, ...]] = []

    class Knowing(nn.Module):
        """Finds all shapes, whichever image it is given: by its size and first pixel."""

        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            sizes.append(tuple(images.shape))
            return [found[tuple(image[:, 0, 0].tolist())] for image in images]

    found = {}
    content = json.loads((coco / "annotations/instances_val.json").read_text())
    for entry in content["images"]:
        image = torchvision.io.decode_image(str(coco / "val" / entry["file_name"])).float() / 255
        objects = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
        boxes = torch.tensor([a["bbox"] for a in objects]).float()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([a["category_id"] for a in objects])
        found[tuple(image[:, 0, 0].tolist())] = {"boxes": boxes, "labels": labels, "scores": torch.ones(len(objects))}
    numbers = workload.eval_fn(Knowing())
    assert numbers["coco/bbox_mAP"] == pytest.approx(1.0) and next(iter(numbers)) == "coco/bbox_mAP"
    assert {name for name in numbers if name.startswith("coco/bbox_mAP/")} <= {
        f"coco/bbox_mAP/{name}" for name in ("circle", "rectangle", "triangle")
    }
    assert sorted(sizes) == [(1, 3, 96, 120), (2, 3, 96, 96)], "images of one size go through together"


def test_how_many_images_go_through_together_changes_nothing(coco: Path, weights: dict[str, str]) -> None:
    one, three = (
        load_workload(
            f"torchvision:{SSD}",
            LoadSettings(batch_size=size, loader_workers=0),
            checkpoint=weights[SSD],
            data=str(coco),
            image_size=64,
        )
        for size in (1, 3)
    )
    images = torch.cat(list(three.calibration(CalibrationRequest(n=3))))
    with torch.no_grad():
        together = run_detector(three.model, images)
        alone = [run_detector(three.model, image[None])[0] for image in images]
    assert all(torch.allclose(a["scores"], b["scores"], atol=1e-5) for a, b in zip(together, alone, strict=True))
    assert float(together[0]["scores"].std()) > 0.01 and not torch.equal(together[0]["scores"], together[1]["scores"])
    numbers = one.eval_fn(one.model)
    assert numbers == pytest.approx(three.eval_fn(three.model), abs=1e-6) and "coco/bbox_mAP" in numbers


def test_calibration_images_are_the_train_images_without_labels(coco: Path, tmp_path: Path) -> None:
    workload = load_drawn(coco)

    def images(**request: Any) -> Tensor:
        return torch.cat(list(workload.calibration(CalibrationRequest(**request))))

    plain, augmented = images(n=4), images(n=4, images="augmented")
    assert plain.shape == (4, 3, 96, 96) and 0 <= float(plain.min()) and float(plain.max()) <= 1
    assert torch.equal(images(n=2), plain[:2]) and not torch.equal(images(n=4, seed=1), plain)
    flipped = [torch.equal(a, p.flip(-1)) for a, p in zip(augmented, plain, strict=True)]
    same = [torch.equal(a, p) for a, p in zip(augmented, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert torch.equal(images(n=4, images="augmented"), augmented)
    with pytest.raises(NabnError, match="samples must be at most 4"):
        images(n=5, exact=True)
    with pytest.raises(NabnError, match="calibration must be one of representative"):
        images(source="one_class")
    (tmp_path / "bare").mkdir()
    for part in ("train", "val"):
        (tmp_path / "bare" / part).symlink_to(coco / part)
    (tmp_path / "bare" / "val.json").write_bytes((coco / "annotations/instances_val.json").read_bytes())
    bare = load_drawn(tmp_path / "bare")
    assert torch.equal(torch.cat(list(bare.calibration(CalibrationRequest(n=4)))), plain)
    with pytest.raises(NabnError, match=r"has no file annotations/instances_train\.json"):
        bare.check_recipe(Recipe(epochs=1, learning_rate=0.01, clip_sigma=2.5, seed=0))  # type: ignore[misc]


def test_compressed_images_have_a_clean_twin(coco: Path, weights: dict[str, str]) -> None:
    workload = load_drawn(coco, checkpoint=weights[SSD])
    assert workload.compressed is not None
    compressed = workload.compressed(5)
    request = CalibrationRequest(n=3, reference_skips=("CompressJPEG",))
    (clean, seen), *_ = list(compressed.calibration(request))
    plain = next(iter(workload.calibration(CalibrationRequest(n=3))))
    assert torch.equal(clean, plain) and not torch.equal(seen, plain)
    assert compressed.forward_fn is not None and compressed.reference_forward_fn is not None
    scores = [fn(compressed.model, (clean, seen)) for fn in (compressed.forward_fn, compressed.reference_forward_fn)]
    assert not torch.equal(scores[0][0]["scores"], scores[1][0]["scores"])


def _without_noise(name: str, size: int = 64) -> tuple[nn.Module, nn.Module, Tensor]:
    model: Any = settled(build_detector(name, 4), max(size, 64))
    set_size(model, size)
    images = torch.rand(2, 3, 72, 90, generator=torch.Generator().manual_seed(1))
    analog = nabn.convert_to_noise_aware(model, PERFECT, example_inputs=images)
    nabn.program_chip(analog, seed=0)
    return model, analog, images


def assert_equal_without_noise(name: str, size: int = 64) -> None:
    model, analog, images = _without_noise(name, size)
    report = analog.conversion_report
    assert report.analog_share == 1.0 and not report.refused and "layers give what the digital" in report.verified
    for part in (model, analog):  # whatever the scores: with random weights RetinaNet and FCOS are sure of nothing
        (part.roi_heads if hasattr(part, "roi_heads") else part).score_thresh = 0.0
    with torch.no_grad():
        found = model(images)
        assert min(len(one["boxes"]) for one in found) > 10 and float(found[0]["scores"].std()) > 1e-5
        for digital, chip in zip(found, analog(images), strict=True):
            assert digital.keys() == chip.keys() and len(digital["boxes"]) == len(chip["boxes"])
            for key in ("boxes", "scores"):
                assert torch.allclose(digital[key], chip[key], rtol=1e-4, atol=1e-4)
            assert torch.equal(digital["labels"], chip["labels"])


@pytest.mark.parametrize("name", SMALL)
def test_a_chip_without_noise_finds_what_the_network_finds(name: str) -> None:
    assert_equal_without_noise(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in SMALL])
def test_a_chip_without_noise_finds_what_every_network_finds(name: str) -> None:
    assert_equal_without_noise(name, 300 if name == "ssd300_vgg16" else 64)


def test_what_is_compared_lies_before_suppression() -> None:
    _, analog, _ = _without_noise(RCNN)
    points = matching_points(analog)
    assert {"rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"} <= set(points)
    assert not {"rpn", "roi_heads"} & set(points)


@pytest.mark.parametrize("name", [SSD, pytest.param(RCNN, marks=pytest.mark.slow)])
def test_calibration_brings_the_heads_back(name: str, coco: Path, weights: dict[str, str]) -> None:
    workload = load_drawn(coco, name, checkpoint=weights[name])
    config = nabn.presets.GaussianWeightNoisePreset(sigma=0.05)
    batches = list(workload.calibration(CalibrationRequest(n=4)))
    analog = nabn.convert_to_noise_aware(workload.model, config)
    nabn.program_chip(analog, seed=1)

    def apart() -> float:
        seen: list[list[Tensor]] = []
        heads = {SSD: "head.classification_head", RCNN: "rpn.head"}
        for model in (workload.model, analog):
            handle = model.get_submodule(heads[name]).register_forward_hook(
                lambda _, __, out: seen.append([out] if isinstance(out, Tensor) else list(out[0]))
            )
            with torch.no_grad():
                run_detector(model, batches[0])
            handle.remove()
        pairs = zip(*seen, strict=True)
        return float(sum((chip - digital).square().mean() / digital.var() for digital, chip in pairs))

    before = apart()
    report = nabn.calibrate(
        analog, batches, method="paired", reference=workload.model, forward_fn=workload.forward_fn, progress=False
    )
    assert apart() < 0.7 * before and report is not None


@pytest.mark.slow
def test_nothing_found_is_no_error() -> None:
    """Layers behind proposals run on no region at all."""
    model = _build("maskrcnn_resnet50_fpn", 4).eval()
    model.roi_heads.score_thresh = 1.1
    set_size(model, 32)
    images = torch.rand(1, 3, 32, 32)
    analog = nabn.convert_to_noise_aware(model, PERFECT)
    nabn.program_chip(analog, seed=0)
    with torch.no_grad():
        found = analog(images)
    assert len(found[0]["boxes"]) == 0 and found[0]["masks"].shape == (0, 1, 32, 32) and has_masks(analog)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "tpu9"}, "device must be one that torch can use"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_one_clear_error(given: dict[str, Any], message: str, coco: Path) -> None:
    with pytest.raises(NabnError, match=message):
        load_drawn(coco, **given)


def test_a_size_that_the_network_cannot_take_is_told(coco: Path) -> None:
    with pytest.raises(NabnError, match="ssd300_vgg16 cannot take images of .* pixels as they are set"):
        load_drawn(coco, "ssd300_vgg16", image_size=64)


def test_no_object_to_measure_on_is_told(tmp_path: Path) -> None:
    root = draw_coco(tmp_path / "coco", change=lambda content: content | {"annotations": []})
    with pytest.raises(NabnError, match=r"instances_val\.json has no object in the 3 images to be tested on"):
        load_drawn(root)


# Training


def test_targets_lie_where_the_objects_do(coco: Path) -> None:
    from aihwkit_nabn.data.coco import open_coco

    truth = open_coco(coco).train_annotations()
    truth.objects[0][0]["iscrowd"] = 1
    images = LabelledImages(truth, {1: 5, 2: 6, 3: 7}, masks=True)
    assert len(images.objects[0]) == len(truth.objects[0]) - 1
    for place in images.places:
        (image, target), (flipped, mirrored) = (images.item(place, flip) for flip in (False, True))
        assert torch.equal(flipped, image.flip(-1)) and torch.equal(mirrored["masks"], target["masks"].flip(-1))
        for box, mask in zip(mirrored["boxes"].int().tolist(), mirrored["masks"], strict=True):
            rows, columns = mask.nonzero().T
            assert [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1] == box
        assert set(target["labels"].tolist()) <= {5, 6, 7}
    epochs = [list(images.batches(3, seed)) for seed in (1, 1, 2)]
    seen = [sum(len(pictures) for pictures, _ in epoch) for epoch in epochs]
    assert seen == [len(images.places)] * 3 and len(images.places) >= 3
    orders = [[float(picture.sum()) for pictures, _ in epoch for picture in pictures] for epoch in epochs]
    assert orders[0] != orders[2]
    assert all(
        torch.equal(a, b)
        for (x, _), (y, _) in zip(epochs[0], epochs[1], strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("name", [SSD, pytest.param(RCNN, marks=pytest.mark.slow)])
def test_training_moves_the_network_and_keeps_its_class(name: str, coco: Path) -> None:
    workload = load_drawn(coco, name)
    assert workload.train is not None and workload.check_recipe is not None
    recipe = Recipe(epochs=1, learning_rate=0.001, clip_sigma=2.5, seed=0)
    workload.check_recipe(recipe)
    before = {key: tensor.clone() for key, tensor in workload.model.state_dict().items()}
    trained = workload.train(TrainingNoise(kind="additive", std=0.02), None, recipe)
    assert type(trained.model) is type(workload.model) and not trained.model.training
    assert trained.report.images == 4 and trained.report.losses[0] > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in workload.model.state_dict().items())
    assert any(not torch.equal(tensor, before[key]) for key, tensor in trained.model.state_dict().items())
    assert "coco/bbox_mAP" in workload.eval_fn(trained.model)


def _segments_gone(content: Any) -> Any:
    for entry in content["annotations"]:
        del entry["segmentation"]
    return content


@pytest.mark.slow
def test_masks_are_measured_where_they_are_known(coco: Path, tmp_path: Path) -> None:
    name = "maskrcnn_resnet50_fpn"
    workload = load_drawn(coco, name, image_size=32, test_images=1)
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= workload.eval_fn(workload.model).keys()
    batch = next(iter(workload.calibration(CalibrationRequest(n=1))))
    assert workload.forward_fn is not None
    calibrating = workload.forward_fn(workload.model, batch)[0]["masks"]
    assert calibrating.shape[2:] == (28, 28), "not pasted into the image"
    bare = load_drawn(draw_coco(tmp_path / "bare", change=_segments_gone), name, image_size=32, test_images=1)
    assert "mask mAP is not measured" in bare.description[-1]
    with pytest.raises(NabnError, match="trains on masks, but .* has objects without segmentation"):
        bare.check_recipe(Recipe(epochs=1, learning_rate=0.01, clip_sigma=2.5, seed=0))  # type: ignore[misc]
