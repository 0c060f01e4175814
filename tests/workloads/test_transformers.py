"""transformers' networks from a folder: classifiers, detectors, segmenters, each held against transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.coco import open_coco
from aihwkit_nabn.data.segmentation import open_masks
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from aihwkit_nabn.workloads._transformers_files import Boxes

transformers = pytest.importorskip("transformers", reason="needs transformers: uv sync")
from tests.workloads.pretrained import ANIMALS, SHAPES, load_folder, make  # noqa: E402

Folder = Callable[..., Path]
PERFECT = nabn.presets.GaussianWeightNoisePreset(sigma=0.0)
RECIPE = Recipe(epochs=1, learning_rate=0.001, clip_sigma=2.5, seed=0)


class _Knowing(nn.Module):
    """Finds whatever is in an image that it has seen before."""

    def __init__(self, like: nn.Module, answers: list[tuple[Tensor, Any]]) -> None:
        super().__init__()
        self.config, self.answers, self.sizes = like.config, answers, list[int]()

    def answers_of(self, images: Tensor) -> list[Any]:
        self.sizes.append(len(images))
        return [
            next(answer for seen, answer in self.answers if seen.shape == one.shape and torch.equal(seen, one))
            for one in images
        ]


# What is measured


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_a_classifier_scores_what_transformers_says_under_its_own_labels(
    name: str, saved: Callable[[str], Path], pictures: Path
) -> None:
    folder = saved(name)
    network = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    paths = sorted((pictures / "val").rglob("*.png"))
    with torch.no_grad():
        scores = [network(**own(images=Image.open(path), return_tensors="pt")).logits[0] for path in paths]
    found = [network.config.id2label[int(row.argmax())].lower().replace("_", " ") for row in scores]
    right = [path.parent.name == name for path, name in zip(paths, found, strict=True)]
    workload = load_folder(folder, pictures)
    assert workload.eval_fn(workload.model) == {"accuracy": pytest.approx(100 * sum(right) / len(right))}
    assert "2 classes of the network's 3, images of 32 x 32 pixels" in workload.description[0]
    assert workload.description[-1].startswith(f"images: {type(own).__name__}, size ")
    assert workload.test_set is not None
    tested = workload.test_set()
    expected = {float(row.sum()): ANIMALS[0] == path.parent.name for row, path in zip(scores, paths, strict=True)}
    for image, label in zip(tested.images, tested.labels, strict=True):
        with torch.no_grad():
            total = float(workload.model(image[None]).sum())
        assert (int(label) == 0) == expected[min(expected, key=lambda known: abs(known - total))]


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_a_detector_that_knows_all_finds_all_in_images_of_two_sizes(
    name: str, saved: Callable[[str], Path], coco: Path
) -> None:
    workload = load_folder(saved(name), coco, per_class=True)
    truth, own = open_coco(coco).val, transformers.AutoImageProcessor.from_pretrained(saved(name))
    label_of = {text: label for label, text in SHAPES.items()}

    def answer(place: int, width: int, height: int) -> Boxes:
        boxes, logits = torch.zeros(10, 4), torch.full((10, len(SHAPES) + (name == "detr")), -20.0)
        logits[:, -1] = 20.0 if name == "detr" else -20.0  # nothing found
        for query, entry in enumerate(truth.objects[place]):
            x, y, w, h = entry["bbox"]
            boxes[query] = torch.tensor([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
            logits[query, -1] = -20.0
            logits[query, label_of[truth.categories[entry["category_id"]]]] = 20.0
        return Boxes(logits, boxes)

    answers = []
    for place in range(len(truth.images)):
        image = Image.open(truth.path(place)).convert("RGB")
        answers.append((own(images=image, return_tensors="pt")["pixel_values"][0], answer(place, *image.size)))

    class Knowing(_Knowing):
        def forward(self, images: Tensor) -> Boxes:
            return Boxes(*map(torch.stack, zip(*self.answers_of(images), strict=True)))

    knowing = Knowing(workload.model, answers)
    numbers = workload.eval_fn(knowing)
    assert numbers["coco/bbox_mAP"] == pytest.approx(1.0) and sorted(knowing.sizes) == [1, 2]
    assert any(name.startswith("coco/bbox_mAP/") for name in numbers) and workload.facts["test_images"] == 3
    assert "coco/bbox_mAP" in workload.eval_fn(workload.model)
    assert "DetrForObjectDetection" in workload.description[0] and "3 classes" in workload.description[0]


def test_a_segmenter_that_knows_all_scores_a_hundred_and_masks_may_count_from_one(
    tmp_path: Path, masks: Path, saved: Callable[[str], Path]
) -> None:
    ade = tmp_path / "ade"
    shutil.copytree(saved("segformer"), ade)
    shifted = json.loads((ade / "preprocessor_config.json").read_text()) | {"do_reduce_labels": True}
    (ade / "preprocessor_config.json").write_text(json.dumps(shifted))
    own, part = transformers.AutoImageProcessor.from_pretrained(saved("segformer")), open_masks(masks).val

    class Knowing(_Knowing):
        def forward(self, images: Tensor) -> Tensor:
            one_hot = [nn.functional.one_hot(truth, 4).movedim(-1, 0).float() for truth in self.answers_of(images)]
            return torch.stack(one_hot)

    def numbers(folder: Path, first: int) -> dict[str, float]:
        workload = load_folder(folder, masks, per_class=True, batch=2)
        answers = []
        for place, path in enumerate(part.images):
            image = Image.open(path).convert("RGB")
            truth = (part.mask(place, 4, 255) - first).clamp(min=0)
            answers.append((own(images=image, return_tensors="pt")["pixel_values"][0], truth))
        assert ("masks count classes from 1" in workload.description[-1]) == bool(first)
        return workload.eval_fn(Knowing(workload.model, answers))

    plain, reduced = numbers(saved("segformer"), 0), numbers(ade, 1)
    assert plain["mIoU"] == plain["aAcc"] == reduced["mIoU"] == reduced["aAcc"] == 100.0
    assert plain.keys() - reduced.keys() == {"mIoU/triangle"} and "mIoU/background" in reduced


def _calibration(workload: Workload) -> Callable[..., Tensor]:
    return lambda **request: torch.cat(list(workload.calibration(CalibrationRequest(n=4, **request))))


def test_calibration_images_are_plain_or_moved_at_random(
    saved: Callable[[str], Path], pictures: Path, coco: Path, masks: Path
) -> None:
    for name, data in (("vit", pictures), ("detr", coco), ("segformer", masks)):
        images = _calibration(load_folder(saved(name), data))
        plain = [images(seed=seed) for seed in range(3)]
        moved = [images(seed=seed, images="augmented") for seed in range(3)]
        assert {tuple(part.shape) for part in moved} == {tuple(part.shape) for part in plain}
        assert not all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True)), name
        assert torch.equal(moved[0], images(images="augmented")) and not torch.equal(plain[0], plain[1])
    digits = next(iter(load_folder(saved("vit"), pictures).calibration(CalibrationRequest(n=2, source="other_data"))))
    assert digits.shape == (2, 3, 32, 32) and float(digits.min()) == pytest.approx(-1.0, abs=0.02)


def test_images_held_back_from_calibration_are_measured_on(
    saved: Callable[[str], Path], pictures: Path, coco: Path, masks: Path
) -> None:
    for name, data in (("vit", pictures), ("detr", coco), ("segformer", masks)):
        workload = load_folder(saved(name), data)
        assert workload.held_back is not None
        measure = workload.held_back(2, CalibrationRequest(n=2))
        assert measure is not None and measure(workload.model).keys() == workload.eval_fn(workload.model).keys()


# What lies on tiles


@pytest.mark.parametrize(
    ("name", "normalizations"),
    [("vit", 0), ("swin", 0), ("detr", 12)]
    + [
        pytest.param(name, count, marks=pytest.mark.slow)
        for name, count in (("deit", 0), ("beit", 0), ("convnext", 0), ("resnet", 12), ("segformer", 1))
    ]
    + [pytest.param("rt_detr", 57, marks=pytest.mark.slow)],
)
def test_every_matrix_lies_on_a_tile_and_computes_the_same(name: str, normalizations: int) -> None:
    from aihwkit_nabn.workloads._transformers_files import with_plain_outputs

    network = with_plain_outputs(make(name, num_labels=3))
    images = torch.randn(2, 3, *((64, 96) if "detr" in name else (32, 32)))
    chip: Any = nabn.convert_to_noise_aware(network, PERFECT, example_inputs=images)
    report = chip.conversion_report
    assert report.analog_share == 1.0 and not report.refused and len(report.normalization) == normalizations
    verified = chip.verification
    assert verified.n_layers == len(report.converted) and not (verified.silent or verified.read or verified.unmeasured)
    if normalizations:
        nabn.program_chip(chip, seed=1)
        assert len(nabn.calibrate(chip, [images], "population").layers) == normalizations


# Training, and the commands


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "detr", "rt_detr", "segformer"])
def test_training_moves_the_network_and_keeps_its_form(
    name: str, saved: Callable[[str], Path], pictures: Path, coco: Path, masks: Path
) -> None:
    workload = load_folder(saved(name), {"vit": pictures, "segformer": masks}.get(name, coco), batch=3)
    assert workload.train is not None
    trained = workload.train(TrainingNoise(std=0.02), None, RECIPE)
    before, after = workload.model.state_dict(), trained.model.state_dict()
    assert type(trained.model) is type(workload.model) and not trained.model.training
    assert before.keys() == after.keys() and any(not torch.equal(before[key], after[key]) for key in before)
    assert trained.report.losses[0] > 0 and workload.eval_fn(trained.model).keys()


def test_boxes_of_the_loss_are_where_the_objects_are(saved: Callable[[str], Path], coco: Path) -> None:
    from aihwkit_nabn.workloads._transformers_detection import TransformersDetector

    image, target = (
        torch.zeros(3, 40, 80),
        {"boxes": torch.tensor([[8.0, 4.0, 24.0, 20.0]]), "labels": torch.tensor([1])},
    )
    detector = TransformersDetector.__new__(TransformersDetector)
    detector.__dict__["device"] = torch.device("cpu")
    label = detector._label(image, target)
    assert torch.allclose(label["boxes"], torch.tensor([[0.2, 0.3, 0.2, 0.4]])) and label["class_labels"].tolist() == [
        1
    ]


@pytest.mark.slow
def test_on_the_command_line(
    saved: Callable[[str], Path], pictures: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_on(command: str, name: str, *more: str) -> str:
        given = ["--noise", "gaussian:sigma=0.1", "--chips", "1", "--loader-workers", "0", "--calibration-images", "4"]
        arguments = [command, f"transformers:{saved(name)}", *given, "--out", str(tmp_path / command / name), *more]
        assert run(cli.app, arguments) == 0
        return capsys.readouterr().out

    text = run_on("test", "detr", "--data", str(coco), "--methods", "none,population,auto", "--examples", "1")
    assert "12 normalization layers made noise-aware" in text and "verified on 2 of the test samples" in text
    assert len(list((tmp_path / "test/detr/examples").glob("*.jpg"))) >= 3
    text = run_on("test", "vit", "--data", str(pictures), "--test-images", "4")
    assert "population is left out: the network has no BatchNorm" in text and "uncalibrated  auto" in text
    assert "vit.layers.0" in run_on("sensitivity", "vit", "--data", str(pictures), "--methods", "none")
    text = run_on("compare", "vit", "--data", str(pictures), "--methods", "none,auto", "--epochs", "1", "--wrong", "2")
    assert "HWA" in text
    assert run(cli.app, ["inspect", f"transformers:{saved('rt_detr')}"]) == 0
    text = capsys.readouterr().out
    assert "100.0% of" in text and "57 BatchNorm layers noise-aware" in text and "0 refused" in text
