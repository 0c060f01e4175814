"""Classifiers: accuracy in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.data.classification import ImageSet, accuracy_on
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from aihwkit_nabn.workloads._images import Images

TEST_BATCH = 64


def classifier(
    model: nn.Module, *, calibration: Images, numbers: Sequence[int], seed: int, tested: ImageSet
) -> Workload:
    """Return a classifier of the set.

    It is calibrated on the images of these numbers, in their order, with augmentation from `seed`, and tested on images
    as the network takes them.
    """

    def batches(request: CalibrationRequest) -> Iterable[Any]:
        size = request.batch_size or TEST_BATCH
        return list(calibration.batches(numbers[: request.n], size, images=request.images, seed=seed))

    return Workload(model=model, eval_fn=accuracy_on(tested, batch_size=TEST_BATCH), calibration=batches)


def chosen(images: Images, numbers: Sequence[int]) -> ImageSet:
    """Return these of the images, as the network takes them at test time, with their labels."""
    found = torch.cat(list(images.batches(numbers, TEST_BATCH, images=PLAIN)))
    return ImageSet(images=found, labels=images.labels[torch.tensor(list(numbers))])
