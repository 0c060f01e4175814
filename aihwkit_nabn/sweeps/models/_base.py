"""What a kind of model in a sweep gives: the network, and its images in every form that a sweep asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.digits import load_digits
from aihwkit_nabn.data.jpeg import compress_images
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.seeding import derive_seed


class Images(Protocol):
    """Images by number, ready for the network."""

    @property
    def labels(self) -> Tensor:
        """``[N]`` class indices."""
        ...

    def plain(self, indices: Sequence[int], jpeg: int | None) -> Tensor:
        """Return images as at test time, compressed first if `jpeg` is a quality."""
        ...

    def augmented(self, indices: Sequence[int], jpeg: int | None, seed: int) -> Tensor:
        """Return images as in training; each image's augmentation depends on the seed and its number alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemoryImages:
    """Images in memory.

    Attributes:
        data: Images in [0, 1], not normalised.
        normalise: Makes of them what the network takes.
        augment: Called as ``augment(images, seed=...)`` on images in [0, 1].
    """

    data: ImageSet
    normalise: Callable[[Tensor], Tensor]
    augment: Callable[..., Tensor]

    @property
    def labels(self) -> Tensor:
        """``[N]`` class indices."""
        return self.data.labels

    def plain(self, indices: Sequence[int], jpeg: int | None) -> Tensor:
        """As `Images.plain`."""
        return self.normalise(self._read(indices, jpeg))

    def augmented(self, indices: Sequence[int], jpeg: int | None, seed: int) -> Tensor:
        """As `Images.augmented`."""
        images = self._read(indices, jpeg)
        changed = [
            self.augment(image[None], seed=derive_seed(seed, "augmentation", index))
            for index, image in zip(indices, images, strict=True)
        ]
        return self.normalise(torch.cat(changed))

    def _read(self, indices: Sequence[int], jpeg: int | None) -> Tensor:
        images = self.data.images[torch.tensor(list(indices), dtype=torch.long)]
        return images if jpeg is None else compress_images(images, jpeg)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A trained classifier and its images.

    Attributes:
        model: The digital model, in eval mode, on its device.
        train: Where calibration images come from.
        test: What accuracy is measured on.
        other: Another data set, in the same form.
        device: Where the model is.
        other_name: What the other data set is.
    """

    model: nn.Module
    train: Images
    test: Images
    other: Images
    other_name: str
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A kind of model.

    Attributes:
        load: Called with the part behind the colon of ``KIND:NAME`` and the entry's options; returns a `Bench`.
        options: Checks of the options by name, each called as ``check(field, value)``.
        required: Options that must be given.
        named: Whether it is written ``KIND:NAME``.
    """

    load: Callable[[str, dict[str, Any]], Bench]
    options: dict[str, Callable[[str, Any], Any]]
    required: tuple[str, ...] = ()
    named: bool = False


MODELS: Registry[ModelKind] = Registry("kind of model")


def digits_as(channels: int, size: int) -> ImageSet:
    """Return the training digits as images of another network's size: another data set that needs no download."""
    digits = load_digits("train")
    images = torch.nn.functional.interpolate(digits.images, size=(size, size), mode="bilinear", align_corners=False)
    return ImageSet(images=images.expand(-1, channels, -1, -1).contiguous(), labels=digits.labels)
