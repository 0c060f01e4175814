"""Labelled images in memory and the accuracy of a classifier on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.seeding import check_seed


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images with their labels.

    Attributes:
        images: ``[N, C, H, W]`` float, as the network takes them.
        labels: ``[N]`` class indices, int64.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            shapes = f"{list(self.images.shape)} and {list(self.labels.shape)}"
            raise NabnError(f"images must be [N, C, H, W] and labels [N], got {shapes}")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> ImageSet:
        """Return the first `count` images, or all where there are fewer."""
        count = check_count("count", count, minimum=1)
        return ImageSet(images=self.images[:count], labels=self.labels[:count])

    def shuffled(self, seed: int) -> ImageSet:
        """Return the same images in a random order that `seed` fixes."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(check_seed("seed", seed)))
        return ImageSet(images=self.images[order], labels=self.labels[order])

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same images and labels on `device`."""
        return ImageSet(images=self.images.to(device), labels=self.labels.to(device))


def image_batches(images: Tensor, batch_size: int) -> list[Tensor]:
    """Cut ``[N, C, H, W]`` images into a list of batches that can be iterated again and again."""
    return list(images.split(check_count("batch_size", batch_size, minimum=1)))


def cropped_at_random(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad ``[N, C, H, W]`` images with 0 on every side, and cut a window of the old size out of each at random."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (check_count("padding", padding),) * 4)
    corners = torch.randint(0, 2 * padding + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)])


def topk_hits(logits: Tensor, labels: Tensor, k: int) -> int:
    """Count the rows of ``[N, classes]`` logits whose label is among the `k` largest.

    A row with a NaN is a miss: a chip that puts out NaN has recognised nothing.
    """
    hits = (logits.topk(k, dim=1).indices == labels[:, None]).any(dim=1)
    return int((hits & ~logits.isnan().any(dim=1)).sum())


def batch_accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, top5: bool = False
) -> dict[str, float]:
    """Measure accuracy, and if asked top-5 accuracy, in percent over batches of images and labels.

    Raises:
        NabnError: there is no image at all.
    """
    total = hits1 = hits5 = 0
    with torch.inference_mode():
        for images, labels in batches:
            logits = model(images)
            total += len(labels)
            hits1 += topk_hits(logits, labels, 1)
            hits5 += topk_hits(logits, labels, 5) if top5 else 0
    if total == 0:
        raise NabnError("there are no test images to measure accuracy on")
    scores = {"accuracy": 100.0 * hits1 / total}
    return scores | {"top5_accuracy": 100.0 * hits5 / total} if top5 else scores


def accuracy_on(data: ImageSet, *, batch_size: int = 512) -> Callable[[nn.Module], dict[str, float]]:
    """Return the ``eval_fn`` for `evaluate`: ``eval_fn(model)`` gives ``{"accuracy": percent}`` on `data`."""
    check_count("batch_size", batch_size, minimum=1)

    def eval_fn(model: nn.Module) -> dict[str, float]:
        return batch_accuracy(model, zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True))

    return eval_fn
