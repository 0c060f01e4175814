"""``cifar10``: ResNet-20 on a CIFAR-10 subset in one file."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from aihwkit_nabn.data.cifar import crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.resnet_cifar import load_resnet20
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.workloads._base import WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_text
from aihwkit_nabn.workloads._classifier import Classifier
from aihwkit_nabn.workloads._images import MemoryImages, digits_as

FOLDER = "cifar10_subset"
IMAGES, WEIGHTS = f"{FOLDER}.npz", "resnet20_cifar10.pth"
VARIABLE = "NABN_DATA"
"""Environment variable with the folder of the data, where the option ``data`` does not name one; else ``data``."""

TEST_BATCH, CALIBRATION_BATCH, TRAINING_BATCH = 233, 64, 64


def load(name: str, settings: LoadSettings, *, data: str | None = None, data_root: str | None = None) -> Workload:
    """Return ResNet-20; the other data set is the digits in colour channels that are alike, 32 x 32 pixels.

    Args:
        name: Empty.
        settings: How much of the data.
        data: Folder that holds ``cifar10_subset/``.
        data_root: The same, as version 0.1 called it.
    """
    return build(settings, Path(data or data_root or os.environ.get(VARIABLE) or "data")).workload()


def build(settings: LoadSettings, data: Path) -> Classifier:
    """Return the network with its images, from a folder that holds ``cifar10_subset/``."""
    root = data / FOLDER
    if not (root / IMAGES).is_file():
        raise NabnError(f"cifar10 needs {root / IMAGES}, which does not exist; data (or {VARIABLE}) names the folder")
    train, test = load_cifar_subset(root / IMAGES)
    tested = min(settings.test_images or len(test), len(test))

    def images(data: ImageSet) -> MemoryImages:
        return MemoryImages(data=data, normalise=normalise, augment=crop_and_flip)

    def augmented(epoch: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        data = train.shuffled(derive_seed(seed, "training order", epoch))
        moved = normalise(crop_and_flip(data.images, seed=derive_seed(seed, "training augmentation", epoch)))
        return list(zip(moved.split(TRAINING_BATCH), data.labels.split(TRAINING_BATCH), strict=True))

    return Classifier(
        model=load_resnet20(root / WEIGHTS),
        train=images(train),
        test=images(test),
        other=lambda: images(digits_as(channels=3, size=32)),
        other_name="handwritten digits",
        settings=settings,
        batch_size=(TEST_BATCH, CALIBRATION_BATCH),
        training_batches=augmented,
        description=(
            f"ResNet-20 on CIFAR-10: accuracy on {tested} images, calibration with some of {len(train)} "
            "others, without their labels",
        ),
    )


WORKLOADS.register("cifar10")(WorkloadKind(load=load, options={"data": check_text, "data_root": check_text}))
