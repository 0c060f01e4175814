"""``cifar10``: ResNet-20 on a CIFAR-10 subset in one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aihwkit_nabn.data.cifar import crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.resnet_cifar import load_resnet20
from aihwkit_nabn.sweeps.fields import check_text
from aihwkit_nabn.sweeps.models._base import MODELS, Bench, MemoryImages, ModelKind, digits_as

FOLDER = "cifar10_subset"
VARIABLE = "NABN_DATA"
"""Environment variable with the folder of the data, where the sweep does not name one; without it, ``data``."""


def load(name: str, options: dict[str, Any]) -> Bench:
    """Return ResNet-20; the other data set is the digits in colour channels that are alike, 32 x 32 pixels."""
    root = Path(options.get("data_root") or os.environ.get(VARIABLE) or "data") / FOLDER
    train, test = load_cifar_subset(root / f"{FOLDER}.npz")

    def images(data: ImageSet) -> MemoryImages:
        return MemoryImages(data=data, normalise=normalise, augment=crop_and_flip)

    return Bench(
        model=load_resnet20(root / "resnet20_cifar10.pth"),
        train=images(train),
        test=images(test),
        other=images(digits_as(channels=3, size=32)),
        other_name="handwritten digits",
    )


MODELS.register("cifar10")(ModelKind(load=load, options={"data_root": check_text}))
