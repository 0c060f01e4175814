from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aihwkit_nabn.data.cifar import MEAN, STD, crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet, accuracy_on
from aihwkit_nabn.data.resnet_cifar import CifarBlock, CifarResNet, load_resnet20
from aihwkit_nabn.errors import NabnError


def test_crop_and_flip_gives_windows_of_the_padded_image_or_its_mirror() -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 3, 8, 8) + 0.1
    augmented = crop_and_flip(images, padding=2, seed=5)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    flips = 0
    for image, result in zip(padded, augmented, strict=True):
        windows = [image[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        plain = any(torch.equal(result, window) for window in windows)
        mirrored = any(torch.equal(result, window.flip(-1)) for window in windows)
        assert plain or mirrored
        flips += mirrored
    assert 8 < flips < 32  # half of 40, within four standard errors
    assert torch.equal(augmented, crop_and_flip(images, padding=2, seed=5))


def test_augmentation_pads_with_black_before_normalisation() -> None:
    white = torch.ones(50, 3, 8, 8)
    assert set(crop_and_flip(white, padding=2).unique().tolist()) == {0.0, 1.0}


def test_normalise() -> None:
    images = torch.tensor(MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(normalise(images), torch.zeros(2, 3, 4, 4))
    assert torch.allclose(normalise(torch.zeros(1, 3, 1, 1)).flatten(), -torch.tensor(MEAN) / torch.tensor(STD))


def test_load_subset(tmp_path: Path) -> None:
    path = tmp_path / "subset.npz"
    images = np.arange(2 * 3 * 32 * 32, dtype=np.int64).reshape(2, 3, 32, 32).astype(np.uint8)
    labels = np.array([3, 9])
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:1], test_labels=labels[:1])
    train, test = load_cifar_subset(path)
    assert len(train) == 2 and len(test) == 1
    assert float(train.images.max()) == 1.0 and train.labels.tolist() == [3, 9]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_damaged_subset(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "subset.npz"
    path.write_bytes(content)
    with pytest.raises(NabnError, match="is not a CIFAR subset"):
        load_cifar_subset(path)


def test_subset_without_an_array(tmp_path: Path) -> None:
    path = tmp_path / "subset.npz"
    np.savez(path, train_images=np.zeros((1, 3, 32, 32), dtype=np.uint8))
    with pytest.raises(NabnError, match="train_labels"):
        load_cifar_subset(path)


def test_shortcut_takes_every_second_pixel_and_zero_channels_on_both_sides() -> None:
    block = CifarBlock(16, 32, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 8, 8)
    out = block(x).detach()
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert float(out[:, :8].abs().max()) == 0.0 and float(out[:, 24:].abs().max()) == 0.0


def test_resnet20_has_the_layers_and_the_size_of_the_paper() -> None:
    model = CifarResNet(blocks=3)
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 19
    assert {"conv1", "layer2.0.conv2", "layer3.2.conv1"} <= set(convolutions)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 0.27
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_checkpoint_errors(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="does not exist"):
        load_resnet20(tmp_path / "none.pth")
    torch.save(CifarResNet(blocks=5).state_dict(), tmp_path / "other.pth")
    with pytest.raises(NabnError, match="is not one of ResNet-20"):
        load_resnet20(tmp_path / "other.pth")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(NabnError, match="is not one of ResNet-20"):
        load_resnet20(tmp_path / "bad.pth")


@pytest.mark.skipif("NABN_DATA_ROOT" not in os.environ, reason="needs the data that NABN_DATA_ROOT names")
def test_the_given_resnet20_reaches_its_known_accuracy() -> None:
    folder = Path(os.environ["NABN_DATA_ROOT"]) / "cifar10_subset"
    _, test = load_cifar_subset(folder / "cifar10_subset.npz")
    data = ImageSet(images=normalise(test.images), labels=test.labels)
    accuracy = accuracy_on(data, batch_size=233)(load_resnet20(folder / "resnet20_cifar10.pth"))["accuracy"]
    assert accuracy == pytest.approx(91.63, abs=0.01)
