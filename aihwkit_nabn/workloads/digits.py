"""``digits``: the network and the handwritten digits that come with the package."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.digits import load_demo_model, load_digits, shift_images
from aihwkit_nabn.data.shapes import draw_shapes
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.workloads._base import WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._classifier import Classifier
from aihwkit_nabn.workloads._images import MemoryImages

TEST_BATCH, CALIBRATION_BATCH, TRAINING_BATCH = 150, 64, 64
_OTHER_IMAGES = 512


def load(name: str, settings: LoadSettings) -> Workload:
    """Return the demo network; the other data set is drawn shapes in grey, 8 x 8 pixels."""
    train, test = load_digits("train"), load_digits("test")
    tested = min(settings.test_images or len(test), len(test))

    def images(data: ImageSet) -> MemoryImages:
        return MemoryImages(data=data, normalise=lambda x: x, augment=shift_images)

    def shifted(epoch: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        data = train.shuffled(derive_seed(seed, "training order", epoch))
        moved = shift_images(data.images, seed=derive_seed(seed, "training shift", epoch))
        return list(zip(moved.split(TRAINING_BATCH), data.labels.split(TRAINING_BATCH), strict=True))

    return Classifier(
        model=load_demo_model(),
        train=images(train),
        test=images(test),
        other=lambda: images(_grey_shapes()),
        other_name="drawn shapes",
        settings=settings,
        batch_size=(TEST_BATCH, CALIBRATION_BATCH),
        training_batches=shifted,
        description=(
            f"a network that reads handwritten digits: accuracy on {tested} images, calibration with some "
            f"of {len(train)} others, without their labels",
        ),
    ).workload()


def _grey_shapes() -> ImageSet:
    drawn = [draw_shapes("train", index) for index in range(_OTHER_IMAGES)]
    small = [
        np.asarray(Image.fromarray(image).convert("L").resize((8, 8), Image.Resampling.BOX)) for image, *_ in drawn
    ]
    labels = torch.tensor([shapes[0]["category"] - 1 if shapes else 0 for *_, shapes in drawn])
    return ImageSet(images=torch.from_numpy(np.stack(small)).float()[:, None] / 255.0, labels=labels)


WORKLOADS.register("digits")(WorkloadKind(load=load, build=lambda name: load_demo_model()))
