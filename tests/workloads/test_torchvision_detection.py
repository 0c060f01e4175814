"""torchvision's detectors: weights, labels, calibration, training, on drawn shapes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import FrozenBatchNorm2d

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration.matching import matching_points
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.nn import NoiseAwareBatchNorm
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from aihwkit_nabn.workloads._detection_training import LabelledImages
from aihwkit_nabn.workloads._torchvision_detectors import _build, _build_full_tail, build_detector, labels_of, set_size
from aihwkit_nabn.workloads._torchvision_files import ReadWeights
from aihwkit_nabn.workloads.torchvision_detection import DETECTORS, has_masks, run_detector
from tests.workloads.scenes import draw_coco, settled

SSD = "ssdlite320_mobilenet_v3_large"
RCNN = "fasterrcnn_mobilenet_v3_large_320_fpn"
SMALL = (SSD, RCNN)
PERFECT = nabn.presets.GaussianWeightNoisePreset(sigma=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files with weights whose scores differ from place to place, by network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    return {name: _save(folder / f"{name}.pth", settled(_build(name, 4))) for name in SMALL}


def _load(data: Path, name: str = SSD, *, test_images: int | None = None, seed: int = 0, **given: Any) -> Workload:
    settings = LoadSettings(seed=seed, test_images=test_images, loader_workers=0)
    options = {"checkpoint": "random", "data": str(data), "image_size": 64, **given}
    return load_workload(f"torchvision:{name}", settings, **{k: v for k, v in options.items() if v is not None})


def _save(path: Path, model: nn.Module) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


def test_names_that_are_not_measured_are_told(root: Path) -> None:
    assert {SSD, RCNN, "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"} <= set(DETECTORS)
    with pytest.raises(UnknownNameError, match="unknown torchvision network .*key points are not measured"):
        _load(root, "keypointrcnn_resnet50_fpn")
    with pytest.raises(UnknownNameError, match="did you mean 'fcos_resnet50_fpn'"):
        _load(root, "fcos_resnet50_fpm")
    with pytest.raises(NabnError, match=r"needs data: the folder; COCO's form is annotations/instances_train\.json"):
        load_workload(f"torchvision:{SSD}", checkpoint="random")
    with pytest.raises(NabnError, match="takes no ignore_index"):
        _load(root, ignore_index=3)
    with pytest.raises(NabnError, match="takes no per_class"):
        load_workload("torchvision:resnet18", checkpoint="random", data=str(root), per_class=True)


def test_images_of_two_sizes_are_measured_and_described(root: Path) -> None:
    workload = _load(root, per_class=True)
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
    content = json.loads((root / "annotations/instances_val.json").read_text())
    for entry in content["images"]:
        image = torchvision.io.decode_image(str(root / "val" / entry["file_name"])).float() / 255
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


def test_how_many_images_go_through_together_changes_nothing(root: Path, weights: dict[str, str]) -> None:
    one, three = (
        load_workload(
            f"torchvision:{SSD}",
            LoadSettings(batch_size=size, loader_workers=0),
            checkpoint=weights[SSD],
            data=str(root),
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


def test_calibration_images_are_the_train_images_without_labels(root: Path, tmp_path: Path) -> None:
    workload = _load(root)

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
        (tmp_path / "bare" / part).symlink_to(root / part)
    (tmp_path / "bare" / "val.json").write_bytes((root / "annotations/instances_val.json").read_bytes())
    bare = _load(tmp_path / "bare")
    assert torch.equal(torch.cat(list(bare.calibration(CalibrationRequest(n=4)))), plain)
    with pytest.raises(NabnError, match=r"has no file annotations/instances_train\.json"):
        bare.check_recipe(Recipe(epochs=1, learning_rate=0.01, clip_sigma=2.5, seed=0))  # type: ignore[misc]


def test_compressed_images_have_a_clean_twin(root: Path, weights: dict[str, str]) -> None:
    workload = _load(root, checkpoint=weights[SSD])
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
def test_calibration_brings_the_heads_back(name: str, root: Path, weights: dict[str, str]) -> None:
    workload = _load(root, name, checkpoint=weights[name])
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


# Weights


def test_weights_are_read_whichever_backbone_they_were_trained_on(root: Path, tmp_path: Path) -> None:
    for number, model in enumerate((settled(_build(SSD, 4)), settled(_build_full_tail(4)))):
        there = _load(root, checkpoint=_save(tmp_path / f"{number}.pth", model)).model
        assert there.state_dict().keys() == model.state_dict().keys()
        set_size(model, 64)
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            ours, theirs = there(image)[0], model(image)[0]
        assert torch.equal(ours["scores"], theirs["scores"]) and float(ours["scores"].std()) > 0.01


def _old_names(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return a state dict as torchvision wrote it before its heads were made of blocks."""

    def old(key: str) -> str:
        key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        if name == "retinanet_resnet50_fpn":
            key = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
        return key

    return {old(key): tensor for key, tensor in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [RCNN, "retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "fcos_resnet50_fpn"])
def test_names_of_older_files_are_known_as_torchvision_knows_them(name: str, root: Path, tmp_path: Path) -> None:
    model = _build(name, 4)
    state = _old_names(model.state_dict(), name)
    assert state.keys() != model.state_dict().keys()
    twin = _build(name, 4)
    twin.load_state_dict(dict(state))  # torchvision's own loading takes them
    torch.save(state, tmp_path / "old.pth")
    there = _load(root, name, checkpoint=str(tmp_path / "old.pth")).model.state_dict()
    assert all(torch.equal(there[key], tensor) for key, tensor in twin.state_dict().items())


def test_frozen_normalization_is_kept_and_calibrated(root: Path, tmp_path: Path) -> None:
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=4)
    state = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if not (key.startswith("backbone") and key.endswith("num_batches_tracked"))
    }
    torch.save(state, tmp_path / "frozen.pth")
    workload = _load(root, RCNN, checkpoint=str(tmp_path / "frozen.pth"))
    frozen = [name for name, module in workload.model.named_modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(frozen) == 46 and "frozen BatchNorm layers" in workload.description[-1]
    analog = nabn.convert_to_noise_aware(workload.model, nabn.presets.GaussianWeightNoisePreset(sigma=0.05))
    nabn.program_chip(analog, seed=0)
    batches = workload.calibration(CalibrationRequest(n=2))
    nabn.calibrate(analog, batches, method="population", forward_fn=workload.forward_fn, progress=False)
    norms = [analog.get_submodule(name) for name in frozen]
    assert all(isinstance(norm, NoiseAwareBatchNorm) and norm.is_calibrated for norm in norms)


def _published(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, weights: Any, path: Path) -> str:
    torch.save(state, path)
    monkeypatch.setattr("aihwkit_nabn.workloads._torchvision_files.published_weights", lambda name, file: weights)
    return str(path)


def test_torchvisions_own_weights_go_by_names_and_add_nothing_to_the_variance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(content: Any) -> Any:
        for category, name in zip(content["categories"], ("dog", "cat", "person"), strict=True):
            category["name"] = name
        return content

    root = draw_coco(tmp_path / "coco", change=renamed)
    weights = detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    state = _build("retinanet_resnet50_fpn", 91).state_dict()
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    workload = _load(
        root, "retinanet_resnet50_fpn", checkpoint=_published(state, monkeypatch, weights, tmp_path / "w.pth")
    )
    norms = [module for module in workload.model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53 and {norm.eps for norm in norms} == {0.0}
    read = ReadWeights(state={}, outputs=91, published=weights, source="weights x", notes=[])
    assert labels_of("retinanet_resnet50_fpn", {1: "dog", 2: "cat", 3: "person"}, read, "x") == {1: 18, 2: 17, 3: 1}
    with pytest.raises(NabnError, match="which find COCO's categories; x has 'circle', which is none of them"):
        labels_of("retinanet_resnet50_fpn", {1: "circle", 2: "cat"}, read, "x")


@pytest.mark.parametrize(
    ("name", "ids", "outputs", "labels"),
    [
        (SSD, [1, 2, 3], 4, [1, 2, 3]),
        (SSD, [1, 5, 90], 91, [1, 5, 90]),
        (SSD, [1, 5, 90], 4, [1, 2, 3]),
        (SSD, [0, 1, 2], 4, [1, 2, 3]),
        ("fcos_resnet50_fpn", [0, 1, 2], 3, [0, 1, 2]),
        ("retinanet_resnet50_fpn", [4, 7], 2, [0, 1]),
        ("retinanet_resnet50_fpn", [4, 7], 3, [1, 2]),
        ("retinanet_resnet50_fpn", [4, 7], 8, [4, 7]),
    ],
)
def test_labels_follow_the_number_of_classes(name: str, ids: list[int], outputs: int, labels: list[int]) -> None:
    read = ReadWeights(state={}, outputs=outputs, published=None, source="weights x", notes=[])
    assert labels_of(name, {number: f"c{number}" for number in ids}, read, "x") == dict(zip(ids, labels, strict=True))


@pytest.mark.parametrize(
    ("name", "outputs", "message"),
    [
        (SSD, 6, r"tell 6 classes apart, but .*val\.json has 3 categories, for which they must be 4 \(the background"),
        (SSD, 3, "tell 3 classes apart"),
        ("fcos_resnet50_fpn", 5, r"5 classes apart, .* must be 4 \(.*\) or 3 \(its categories alone\)"),
    ],
)
def test_both_numbers_of_classes_are_told(name: str, outputs: int, message: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=message):
        _load(root, name, checkpoint=_save(tmp_path / "w.pth", _build(name, outputs)))


def test_weights_of_another_network_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="of another network"):
        _load(root, checkpoint=_save(tmp_path / "w.pth", nn.Sequential(nn.Conv2d(3, 4, 1))))
    with pytest.raises(NabnError, match="is it of another model|does not fit the model|of another network"):
        _load(root, checkpoint=_save(tmp_path / "r.pth", torchvision.models.mobilenet_v3_large()))
    with pytest.raises(NabnError, match="is not a file"):
        _load(root, checkpoint=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "tpu9"}, "device must be one that torch can use"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_one_clear_error(given: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(NabnError, match=message):
        _load(root, **given)


def test_a_size_that_the_network_cannot_take_is_told(root: Path) -> None:
    with pytest.raises(NabnError, match="ssd300_vgg16 cannot take images of .* pixels as they are set"):
        _load(root, "ssd300_vgg16", image_size=64)


def test_no_object_to_measure_on_is_told(tmp_path: Path) -> None:
    root = draw_coco(tmp_path / "coco", change=lambda content: content | {"annotations": []})
    with pytest.raises(NabnError, match=r"instances_val\.json has no object in the 3 images to be tested on"):
        _load(root)


# Training


def test_targets_lie_where_the_objects_do(root: Path) -> None:
    from aihwkit_nabn.data.coco import open_coco

    truth = open_coco(root).train_annotations()
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
def test_training_moves_the_network_and_keeps_its_class(name: str, root: Path) -> None:
    workload = _load(root, name)
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
def test_masks_are_measured_where_they_are_known(root: Path, tmp_path: Path) -> None:
    name = "maskrcnn_resnet50_fpn"
    workload = _load(root, name, image_size=32, test_images=1)
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= workload.eval_fn(workload.model).keys()
    batch = next(iter(workload.calibration(CalibrationRequest(n=1))))
    assert workload.forward_fn is not None
    calibrating = workload.forward_fn(workload.model, batch)[0]["masks"]
    assert calibrating.shape[2:] == (28, 28), "not pasted into the image"
    bare = _load(draw_coco(tmp_path / "bare", change=_segments_gone), name, image_size=32, test_images=1)
    assert "mask mAP is not measured" in bare.description[-1]
    with pytest.raises(NabnError, match="trains on masks, but .* has objects without segmentation"):
        bare.check_recipe(Recipe(epochs=1, learning_rate=0.01, clip_sigma=2.5, seed=0))  # type: ignore[misc]
