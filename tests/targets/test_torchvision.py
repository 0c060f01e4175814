from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.targets import TARGETS, TargetOptions, load_target
from aihwkit_nabn.targets.torchvision import pipelines, published_weights

Folder = Callable[..., Path]


def _options(data: Path, **given: object) -> TargetOptions:
    return TargetOptions(**{"weights": "random", "data": data, "image_size": 32, "batch_size": 5, **given})  # type: ignore[arg-type]


def test_the_registry_knows_torchvision_and_can_be_added_to() -> None:
    assert "torchvision" in TARGETS
    TARGETS.register("for_test")(lambda name, options: (name, options))
    try:
        options = TargetOptions(weights="x", data=Path("."))
        assert load_target("for_test:a:b", options) == ("a:b", options)
    finally:
        TARGETS.unregister("for_test")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "resnet18",
            "target must be KIND:NAME or a config, got 'resnet18'; known: torchvision:NAME, .*FILE.py, mmdet::FILE",
        ),
        ("torchvision:", "target must be KIND:NAME"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
        ("torchvision:resnet51", "did you mean 'resnet50'|did you mean 'resnet101'"),
    ],
)
def test_target_errors(target: str, message: str, shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match=message):
        load_target(target, _options(shapes_folder()))


def test_detectors_are_no_classifiers(shapes_folder: Folder) -> None:
    with pytest.raises(UnknownNameError, match="torchvision classifier"):
        load_target("torchvision:fasterrcnn_resnet50_fpn", _options(shapes_folder()))


def test_task_measures_every_image_and_keeps_calibration_images_apart(shapes_folder: Folder) -> None:
    task = load_target("torchvision:resnet18", _options(shapes_folder(count=5), max_samples=7))
    assert not task.model.training
    plain, augmented = (torch.cat(list(task.calibration_batches[name])) for name in ("plain", "augmented"))
    assert plain.shape == augmented.shape == (7, 3, 32, 32)
    assert not torch.equal(plain, augmented)
    seen: list[int] = []

    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(images), 3)

    assert task.eval_fn(Constant())["accuracy"] == pytest.approx(100 / 3)
    assert seen == [5, 5, 5]
    batch = next(iter(task.calibration_batches["plain"]))
    assert task.forward_fn(task.model, batch).shape == (5, 3)


def test_images_are_normalised_as_imagenet_and_mixed(shapes_folder: Folder) -> None:
    task = load_target("torchvision:resnet18", _options(shapes_folder(), limit=6))
    batch = next(iter(task.calibration_batches["plain"]))
    dark = (torch.tensor([20.0, 30.0, 30.0]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(batch[0, :, 0, 0], dark, atol=0.5)
    labels: list[int] = []

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            labels.append(len(images))
            return torch.zeros(len(images), 3)

    task.eval_fn(Spy())
    assert sum(labels) == 6


def test_same_seed_same_images(shapes_folder: Folder) -> None:
    root = shapes_folder()
    first, again, other = (
        load_target("torchvision:squeezenet1_1", _options(root, max_samples=6, seed=seed)) for seed in (1, 1, 2)
    )
    for name in ("plain", "augmented"):
        images = [torch.cat(list(task.calibration_batches[name])) for task in (first, again, other)]
        assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    weights = [task.model.state_dict()["features.0.weight"] for task in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_top5_from_ten_classes_on(shapes_folder: Folder) -> None:
    root = shapes_folder(classes=tuple(f"class{index}" for index in range(10)), count=1)
    task = load_target("torchvision:squeezenet1_1", _options(root))
    scores = task.eval_fn(task.model)
    assert set(scores) == {"accuracy", "top5_accuracy"} and scores["top5_accuracy"] >= scores["accuracy"]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "regnet_x_400mf", "googlenet"])
def test_checkpoints_of_many_families_load(name: str, shapes_folder: Folder, tmp_path: Path) -> None:
    if name == "googlenet":
        model = torchvision.models.googlenet(num_classes=3, aux_logits=True, init_weights=False)
    else:
        model = torchvision.models.get_model(name, num_classes=3)
    torch.save({"model": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pth")
    root = shapes_folder(count=1)
    size = 224 if name == "googlenet" else 64
    options = _options(root, weights=str(tmp_path / "w.pth"), image_size=size)
    task = load_target(f"torchvision:{name}", options)
    images = torch.cat(list(task.calibration_batches["plain"]))[:2]
    with torch.no_grad():
        assert torch.equal(task.model(images), model.eval()(images))


def test_old_densenet_files_load(shapes_folder: Folder, tmp_path: Path) -> None:
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    task = load_target("torchvision:densenet121", _options(shapes_folder(count=1), weights=str(tmp_path / "w.pth")))
    assert all(torch.equal(task.model.state_dict()[key], value) for key, value in state.items())


def test_wrong_class_count(shapes_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), path)
    with pytest.raises(NabnError, match="tell 5 classes apart, but .*shapes has 3 class folders"):
        load_target("torchvision:resnet18", _options(shapes_folder(), weights=str(path)))


def test_weights_of_another_model(shapes_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    with pytest.raises(NabnError, match="does not fit the model: missing"):
        load_target("torchvision:resnet34", _options(shapes_folder(), weights=str(path)))
    with pytest.raises(NabnError, match="of another network: the file holds 122 tensors"):
        load_target("torchvision:squeezenet1_1", _options(tmp_path / "shapes", weights=str(path)))


def test_image_size_that_the_model_cannot_take(shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match="vit_b_32 cannot take images of 48 x 48 pixels"):
        load_target("torchvision:vit_b_32", _options(shapes_folder(), image_size=48))


def test_unusable_device(shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match="device must be one that torch can use"):
        load_target("torchvision:resnet18", _options(shapes_folder(), device="warp"))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that saves a model's weights and has torchvision know them as its own."""

    def save(name: str, model: nn.Module, entry: str) -> Path:
        path = tmp_path / "renamed.pth"
        torch.save(model.state_dict(), path)
        start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        own = torchvision.models.get_model_weights(name)[entry]
        changed = dataclasses.replace(own.value, url=f"https://nowhere/{name}-{start}.pth")
        monkeypatch.setattr(own, "_value_", changed)
        return path

    return save


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_own_weights_take_images_as_torchvision_scales_them(name: str, published, shapes_folder: Folder) -> None:
    torch.manual_seed(0)
    there = torchvision.models.get_model(name, weights=None, num_classes=3, transform_input=True, init_weights=False)
    path = published(name, there.eval(), "IMAGENET1K_V1")
    images = torch.randn(2, 3, 96, 96)
    options = _options(shapes_folder(), weights=str(path), image_size=96)
    found = load_target(f"torchvision:{name}", options).model
    assert found.transform_input and torch.equal(found(images), there(images))
    torch.save(there.state_dict() | {"fc.bias": there.fc.bias + 1}, path)  # somebody's own: as the class builds it
    assert not load_target(f"torchvision:{name}", options).model.transform_input


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 96])
def test_vision_transformers_have_the_size_of_their_weights(size: int, tmp_path: Path, shapes_folder: Folder) -> None:
    there = torchvision.models.vit_b_32(num_classes=3, image_size=size).eval()
    torch.save(there.state_dict(), tmp_path / "vit.pth")
    options = _options(shapes_folder(), weights=str(tmp_path / "vit.pth"), image_size=None)
    task = load_target("torchvision:vit_b_32", options)
    images = next(iter(task.calibration_batches["plain"]))
    assert images.shape[2:] == (size, size) and torch.equal(task.model(images), there(images))


def test_own_weights_bring_their_own_transforms(published, shapes_folder: Folder) -> None:
    there = torchvision.models.resnet18(num_classes=3)
    path = published("resnet18", there, "IMAGENET1K_V1")
    assert published_weights("resnet18", str(path)) is torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert published_weights("resnet34", str(path)) is None and published_weights("resnet18", "random") is None
    second = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    assert pipelines("resnet50", None, second)[0].transforms[0].size == second.transforms().resize_size[0]
    assert pipelines("resnet50", None)[0].transforms[0].size == 256


def test_which_weights_were_taken_is_said_and_can_be_chosen(shapes_folder: Folder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, two = (torchvision.models.squeezenet1_1(num_classes=3).state_dict() for _ in range(2))
    averaged = {f"module.{name}": tensor for name, tensor in two.items()} | {"n_averaged": torch.tensor(5)}
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": one, "model_ema": averaged, "epoch": 3}, path)
    root = shapes_folder(count=1)
    for take, state, said in (
        (None, one, "model was taken; --take NAME takes model_ema.module"),
        ("ema", two, "model_ema.module (averaged) was taken; --take NAME takes model"),
    ):
        task = load_target("torchvision:squeezenet1_1", _options(root, weights=str(path), take=take))
        assert torch.equal(task.model.state_dict()["features.0.weight"], state["features.0.weight"])
        assert task.description[-1] == f"weights {path}: {said}"
