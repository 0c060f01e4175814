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
from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, Workload, load_workload
from aihwkit_nabn.workloads.torchvision import image_input, image_input_of, published_weights

Folder = Callable[..., Path]


def _load(target: str, data: Path, *, seed: int = 0, test_images: int | None = None, **given: object) -> Workload:
    settings = LoadSettings(seed=seed, test_images=test_images, batch_size=5, loader_workers=0)
    options = {"checkpoint": "random", "data": str(data), "image_size": 32, **given}
    return load_workload(target, settings, **{name: value for name, value in options.items() if value is not None})


def _images(workload: Workload, images: str = "plain", n: int | None = None, seed: int = 0) -> torch.Tensor:
    return torch.cat(list(workload.calibration(CalibrationRequest(n=n, images=images, seed=seed))))


def test_networks_of_videos_are_not_known(shapes_folder: Folder) -> None:
    with pytest.raises(UnknownNameError, match="unknown torchvision network 'r3d_18'"):
        _load("torchvision:r3d_18", shapes_folder())


def test_task_measures_every_image_and_keeps_calibration_images_apart(shapes_folder: Folder) -> None:
    task = _load("torchvision:resnet18", shapes_folder(count=5))
    assert not task.model.training
    plain, augmented = (_images(task, name, 7) for name in ("plain", "augmented"))
    assert plain.shape == augmented.shape == (7, 3, 32, 32)
    assert not torch.equal(plain, augmented)
    seen: list[int] = []

    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return torch.tensor([[0.0, 1.0, 0.0]]).expand(len(images), 3)

    assert task.eval_fn(Constant())["accuracy"] == pytest.approx(100 / 3)
    assert seen == [5, 5, 5]
    batch = next(iter(task.calibration(CalibrationRequest(n=7))))
    assert task.forward_fn is not None
    assert task.forward_fn(task.model, batch).shape == (5, 3)


def test_images_are_normalised_as_imagenet_and_mixed(shapes_folder: Folder) -> None:
    task = _load("torchvision:resnet18", shapes_folder(), test_images=6)
    batch = next(iter(task.calibration(CalibrationRequest())))
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
    first, again, other = (_load("torchvision:squeezenet1_1", root, seed=seed) for seed in (1, 1, 2))
    for name in ("plain", "augmented"):
        images = [_images(task, name, 6, seed) for task, seed in ((first, 1), (again, 1), (other, 2))]
        assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    weights = [task.model.state_dict()["features.0.weight"] for task in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_top5_from_ten_classes_on(shapes_folder: Folder) -> None:
    root = shapes_folder(classes=tuple(f"class{index}" for index in range(10)), count=1)
    task = _load("torchvision:squeezenet1_1", root)
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
    task = _load(f"torchvision:{name}", root, checkpoint=str(tmp_path / "w.pth"), image_size=size)
    images = _images(task)[:2]
    with torch.no_grad():
        assert torch.equal(task.model(images), model.eval()(images))


def test_old_densenet_files_load(shapes_folder: Folder, tmp_path: Path) -> None:
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    task = _load("torchvision:densenet121", shapes_folder(count=1), checkpoint=str(tmp_path / "w.pth"))
    assert all(torch.equal(task.model.state_dict()[key], value) for key, value in state.items())


def test_wrong_class_count(shapes_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), path)
    with pytest.raises(NabnError, match="tell 5 classes apart, but .*shapes has 3 class folders"):
        _load("torchvision:resnet18", shapes_folder(), checkpoint=str(path))


def test_weights_of_another_model(shapes_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    with pytest.raises(NabnError, match="does not fit the model: missing"):
        _load("torchvision:resnet34", shapes_folder(), checkpoint=str(path))
    with pytest.raises(NabnError, match="is of another network: it holds 122 tensors"):
        _load("torchvision:squeezenet1_1", tmp_path / "shapes", checkpoint=str(path))


def test_image_size_that_the_model_cannot_take(shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match="vit_b_32 cannot take images of 48 x 48 pixels"):
        _load("torchvision:vit_b_32", shapes_folder(), image_size=48)


def test_unusable_device(shapes_folder: Folder) -> None:
    with pytest.raises(NabnError, match="device must be one that torch can use"):
        _load("torchvision:resnet18", shapes_folder(), device="warp")


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
def test_own_weights_take_images_as_torchvision_scales_them(
    name: str, published, shapes_folder: Folder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    there = torchvision.models.get_model(name, weights=None, num_classes=3, transform_input=True, init_weights=False)
    path = published(name, there.eval(), "IMAGENET1K_V1")
    images = torch.randn(2, 3, 96, 96)
    options = {"checkpoint": str(path), "image_size": 96}
    found = _load(f"torchvision:{name}", shapes_folder(), **options).model
    assert found.transform_input and torch.equal(found(images), there(images))
    torch.save(there.state_dict() | {"fc.bias": there.fc.bias + 1}, path)  # somebody's own: as the class builds it
    assert not _load(f"torchvision:{name}", tmp_path / "shapes", **options).model.transform_input


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 96])
def test_vision_transformers_have_the_size_of_their_weights(size: int, tmp_path: Path, shapes_folder: Folder) -> None:
    there = torchvision.models.vit_b_32(num_classes=3, image_size=size).eval()
    torch.save(there.state_dict(), tmp_path / "vit.pth")
    checkpoint = str(tmp_path / "vit.pth")
    task = _load("torchvision:vit_b_32", shapes_folder(), checkpoint=checkpoint, image_size=None)
    images = next(iter(task.calibration(CalibrationRequest())))
    assert images.shape[2:] == (size, size) and torch.equal(task.model(images), there(images))


def test_own_weights_bring_their_own_transforms(published, shapes_folder: Folder) -> None:
    there = torchvision.models.resnet18(num_classes=3)
    path = published("resnet18", there, "IMAGENET1K_V1")
    assert published_weights("resnet18", str(path)) is torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert published_weights("resnet34", str(path)) is None and published_weights("resnet18", "random") is None
    second = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    assert image_input("resnet50", second).resize == second.transforms().resize_size[0]
    assert image_input("resnet50").resize == 256
    assert image_input_of(str(path)) == image_input("resnet18") and image_input_of("random") is None


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
        task = _load("torchvision:squeezenet1_1", root, checkpoint=str(path), take=take)
        assert torch.equal(task.model.state_dict()["features.0.weight"], state["features.0.weight"])
        assert task.description[-1] == f"weights {path}: {said}"
