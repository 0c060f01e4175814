"""Classifiers: accuracy in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.data.classification import ImageSet, accuracy_on, image_batches
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN
from aihwkit_nabn.sweeps.models import Images
from networks._base import Network

TEST_BATCH = 64


def classifier(
    model: nn.Module,
    *,
    calibration: Images,
    numbers: Sequence[int],
    batch_size: int,
    seed: int,
    tested: ImageSet,
    **setup: Any,
) -> Network:
    """Return a classifier of the set.

    Args:
        model: The digital model, in eval mode.
        calibration: Where the calibration images come from.
        numbers: Which of them.
        batch_size: Calibration images per batch.
        seed: Of their augmentation.
        tested: What accuracy is measured on, as the network takes it.
        setup: As `Network` has it.
    """
    images = {
        PLAIN: calibration.plain(numbers, None),
        AUGMENTED: calibration.augmented(numbers, None, seed),
    }
    return Network(
        model=model,
        eval_fn=accuracy_on(tested, batch_size=TEST_BATCH),
        calibration_batches={name: image_batches(each, batch_size) for name, each in images.items()},
        setup={"calibration_images": len(numbers), "batch_size": batch_size, **setup},
    )


def chosen(images: Images, numbers: Sequence[int]) -> ImageSet:
    """Return these of the images, as the network takes them at test time, with their labels."""
    return ImageSet(images=images.plain(numbers, None), labels=images.labels[torch.tensor(list(numbers))])
