"""Images by number, in memory or in files, in every form that a classifier's workload is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from aihwkit_nabn.data.classification import ImageSet, image_batches
from aihwkit_nabn.data.digits import load_digits
from aihwkit_nabn.data.image_files import FileList, by_size, size_of
from aihwkit_nabn.data.image_folder import ImageBatches, TransformedImages
from aihwkit_nabn.data.jpeg import compress_image, compress_images
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import AUGMENTED
from aihwkit_nabn.seeding import derive_seed


class Images(Protocol):
    """Images by number, ready for the network."""

    @property
    def labels(self) -> Tensor:
        """``[N]`` class indices."""
        ...

    def batches(
        self, indices: Sequence[int], size: int, *, images: str, seed: int = 0, jpeg: int | None = None
    ) -> Iterable[Tensor]:
        """Return ``[size, C, H, W]`` batches that can be run through again and again.

        Args:
            indices: Which images, in this order.
            size: Images per batch.
            images: ``"plain"``, as at test time, or ``"augmented"``, as in training; an image's augmentation depends
                on the seed and its number alone.
            seed: Of the augmentation.
            jpeg: Quality at which they are compressed first; None: they are not.
        """
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

    def batches(
        self, indices: Sequence[int], size: int, *, images: str, seed: int = 0, jpeg: int | None = None
    ) -> Iterable[Tensor]:
        """As `Images.batches`."""
        chosen = self.data.images[torch.tensor(list(indices), dtype=torch.long)]
        chosen = chosen if jpeg is None else compress_images(chosen, jpeg)
        if images == AUGMENTED:
            changed = [
                self.augment(image[None], seed=derive_seed(seed, "augmentation", index))
                for index, image in zip(indices, chosen, strict=True)
            ]
            chosen = torch.cat(changed)
        return image_batches(self.normalise(chosen), size)


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """Images read from files when they are needed; compression comes before resizing, as it does in a camera.

    Attributes:
        folder: The files.
        test: From a PIL image to what the network takes.
        training: The same, augmented at random.
        workers: Processes that read them.
    """

    folder: ImageFolder
    test: Callable[[Image.Image], Tensor]
    training: Callable[[Image.Image], Tensor]
    workers: int = 0

    @property
    def labels(self) -> Tensor:
        """``[N]`` class indices."""
        return torch.tensor(self.folder.targets)

    def batches(
        self, indices: Sequence[int], size: int, *, images: str, seed: int = 0, jpeg: int | None = None
    ) -> Iterable[Tensor]:
        """As `Images.batches`."""
        return self._read(indices, size, images, seed, jpeg, labelled=False)

    def labelled(self, indices: Sequence[int], size: int, *, images: str, seed: int = 0) -> Iterable[Any]:
        """Return batches of images with their labels."""
        return self._read(indices, size, images, seed, None, labelled=True)

    def _read(
        self, indices: Sequence[int], size: int, images: str, seed: int, jpeg: int | None, *, labelled: bool
    ) -> ImageBatches:
        transform = self.training if images == AUGMENTED else self.test

        chosen = TransformedImages(self.folder, list(indices), _through_jpeg(transform, jpeg), seed)
        return ImageBatches(chosen, batch_size=size, workers=self.workers, labelled=labelled)


@dataclass(frozen=True, kw_only=True)
class SizedImages:
    """Images in files of any size, without labels; those of one size go through the network together.

    Attributes:
        paths: The files.
        test: From a PIL image to what the network takes.
        training: The same, augmented at random.
        workers: Processes that read them.
    """

    paths: Sequence[Path]
    test: Callable[[Image.Image], Tensor]
    training: Callable[[Image.Image], Tensor]
    workers: int = 0

    def groups(self, indices: Sequence[int], size: int) -> list[list[int]]:
        """Return places in `indices` of the images that go through together, at most `size`."""
        return by_size([size_of(self.paths[index]) for index in indices], size)

    def batches(
        self, indices: Sequence[int], size: int, *, images: str, seed: int = 0, jpeg: int | None = None
    ) -> ImageBatches:
        """As `Images.batches`, in the order of `groups`."""
        transform = self.training if images == AUGMENTED else self.test
        chosen = TransformedImages(FileList(self.paths), list(indices), _through_jpeg(transform, jpeg), seed)
        return ImageBatches(chosen, workers=self.workers, labelled=False, groups=self.groups(indices, size))


def _through_jpeg(transform: Callable[[Image.Image], Tensor], jpeg: int | None) -> Callable[[Image.Image], Tensor]:
    return transform if jpeg is None else lambda image: transform(compress_image(image, jpeg))


def with_twins(make: Callable[[int | None], Iterable[Tensor]], skips: Sequence[str], jpeg: int | None) -> Iterable[Any]:
    """Return batches; where the digital model skips a transform, pairs of what it sees and what the chip sees.

    Args:
        make: Called with a JPEG quality; returns the batches.
        skips: As `CalibrationRequest.reference_skips`.
        jpeg: The quality that the chip's images have, or None.

    Raises:
        NabnError: there is no such transform.
    """
    if not skips:
        return make(jpeg)
    if tuple(skips) != ("CompressJPEG",) or jpeg is None:
        raise NabnError(
            f"reference_skips of a classifier or a torchvision network must be 'CompressJPEG', on compressed images, "
            f"got {', '.join(skips)}{'' if jpeg is not None else ' on images as they are'}"
        )
    return _Pairs(make(None), make(jpeg))


class _Pairs:
    """Batches of two forms of the same images."""

    def __init__(self, clean: Iterable[Tensor], seen: Iterable[Tensor]) -> None:
        self.clean, self.seen = clean, seen

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.clean, self.seen, strict=True)


def digits_as(channels: int, size: int) -> ImageSet:
    """Return the training digits as images of another network's size: another data set that needs no download."""
    digits = load_digits("train")
    images = torch.nn.functional.interpolate(digits.images, size=(size, size), mode="bilinear", align_corners=False)
    return ImageSet(images=images.expand(-1, channels, -1, -1).contiguous(), labels=digits.labels)
