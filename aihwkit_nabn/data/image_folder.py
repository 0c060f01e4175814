"""Images in folders, one folder per class: ``train/CLASS/*.png`` and ``val/CLASS/*.png``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from aihwkit_nabn.data.image_files import UNREADABLE, FileList
from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.seeding import derive_seed, private_rng

_CACHE_BYTES = 2**30
_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class FolderData:
    """The two parts of an image folder.

    Attributes:
        train: Where calibration images come from.
        val: Where accuracy is measured.
        classes: Names of the class folders, sorted; a label is a place in this list.
    """

    train: ImageFolder
    val: ImageFolder
    classes: list[str]


def open_image_folder(root: str | Path) -> FolderData:
    """List the images of ``train/`` and ``val/`` below `root`.

    Raises:
        NabnError: a folder is missing or holds no class folders, a class has no images, or the two parts differ in
            classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise NabnError(f"data folder {str(root)!r} does not exist")
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise NabnError(
                f"data folder {str(root)!r} has no {part}/ folder; it must hold train/CLASS/images and val/CLASS/images"
            )
    train, val = _open_part(root / "train"), _open_part(root / "val")
    differing = sorted(set(train.classes) ^ set(val.classes))
    if differing:
        raise NabnError(
            f"train/ and val/ of {str(root)!r} must have the same class folders; only one of them has "
            f"{', '.join(differing[:_LISTED])}{', ...' if len(differing) > _LISTED else ''}"
        )
    return FolderData(train=train, val=val, classes=train.classes)


def relabelled(folder: FolderData, labels: Sequence[int]) -> FolderData:
    """Return a folder whose images have other labels.

    Args:
        folder: The folder.
        labels: That of each class folder.
    """
    parts = {}
    for name in ("train", "val"):
        part: ImageFolder = copy.copy(getattr(folder, name))
        part.samples = part.imgs = [(path, labels[label]) for path, label in part.samples]
        part.targets = [label for _, label in part.samples]
        parts[name] = part
    return replace(folder, **parts)


def _open_part(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # no class folder, or one without an image
        raise NabnError(f"{folder}: {error}") from error


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Chosen images of a folder, in this order, transformed from PIL images to tensors ``[C, H, W]``.

    A random transform gives the same result for an image every time, by `seed`.
    """

    def __init__(
        self, folder: ImageFolder | FileList, indices: list[int], transform: Callable[[Any], Tensor], seed: int
    ) -> None:
        self.folder, self.indices, self.transform, self.seed = folder, indices, transform, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        path, label = self.folder.samples[self.indices[place]]
        try:
            image = self.folder.loader(path)
        except UNREADABLE as error:
            raise NabnError(f"cannot read image {path}: {error}") from error
        with private_rng(derive_seed(self.seed, "transform", self.indices[place]), torch_only=False):
            return self.transform(image), label


def choose(total: int, count: int | None, seed: int) -> list[int]:
    """Return at most `count` different numbers below `total` in an order that `seed` fixes; None: all of them.

    Random also where all are taken: folders are sorted by class, and a batch of one class has statistics of its own.
    """
    if count is not None:
        check_count("count", count, minimum=1)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].tolist()


class ImageBatches:
    """Batches of images, with their labels if asked for, that can be iterated again and again.

    Up to a gigabyte of them stays in memory after the first time: every chip and every method uses them anew.
    """

    def __init__(
        self,
        dataset: TransformedImages,
        *,
        batch_size: int = 1,
        workers: int = 0,
        labelled: bool,
        groups: list[list[int]] | None = None,
    ) -> None:
        check_count("batch_size", batch_size, minimum=1)
        check_count("workers", workers)
        self._loader = (
            DataLoader(dataset, batch_size=batch_size, num_workers=workers)
            if groups is None
            else DataLoader(dataset, batch_sampler=groups, num_workers=workers)
        )
        self._labelled = labelled
        self._kept: list[Any] | None = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] = []
        size = 0
        for images, labels in self._read():
            batch = (images, labels) if self._labelled else images
            size += images.numel() * images.element_size()
            if size <= _CACHE_BYTES:
                kept.append(batch)
            yield batch
        if size <= _CACHE_BYTES:
            self._kept = kept

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self._loader
        except NabnError as error:
            # A worker process's error arrives with that process's traceback in its message.
            raise NabnError(str(error).strip().splitlines()[-1].split("NabnError: ")[-1]) from error
