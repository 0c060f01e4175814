"""Images with a mask of class indices each, ``images/{train,val}`` and ``masks/{train,val}``, and mIoU on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aihwkit_nabn.data.image_files import UNREADABLE, first_folder, list_images, size_of
from aihwkit_nabn.errors import NabnError, check_count

IGNORED = 255
"""The value of pixels that count for nothing, as in Cityscapes and VOC."""

LAYOUT = (
    "segmentation data is images/train and images/val with masks/train and masks/val: for each image a PNG of the "
    "same name and size whose values are class indices (train/ and val/ with trainannot/ and valannot/, or with "
    "train_masks/ and val_masks/, work too)"
)
NAMES = "classes.txt"


@dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """The images of one part, and where their masks are.

    Attributes:
        images: Files, sorted.
        masks: Folder of the masks; None: there is none.
        root: Folder of the images.
        from_one: Whether the masks count classes from 1, so that 0 counts for nothing, as in ADE20K.
    """

    images: list[Path]
    masks: Path | None
    root: Path
    from_one: bool = False

    def mask_path(self, place: int) -> Path:
        """Return the file of an image's mask.

        Raises:
            NabnError: there is none.
        """
        path = self._path(place)
        if path is None or not self.has_mask(place):
            raise NabnError(f"image {self.images[place]} has no mask{'' if path is None else f' {path}'}; {LAYOUT}")
        return path

    def has_mask(self, place: int) -> bool:
        """Whether an image has a mask."""
        path = self._path(place)
        return path is not None and path.is_file()

    def _path(self, place: int) -> Path | None:
        own = self.images[place].relative_to(self.root).with_suffix(".png")
        return None if self.masks is None else self.masks / own

    def mask(self, place: int, classes: int, ignored: int) -> Tensor:
        """Return a mask ``[H, W]`` of integers, classes counted from 0.

        Args:
            place: Of the image.
            classes: How many there are.
            ignored: The value that is none.

        Raises:
            NabnError: it cannot be read, is no mask of indices, has another size than the image, or an index that is
                no class.
        """
        path = self.mask_path(place)
        values, size = _read_mask(path), size_of(self.images[place])
        if values.shape != (size[1], size[0]):
            raise NabnError(
                f"mask {path} has {values.shape[1]} x {values.shape[0]} pixels, its image "
                f"{self.images[place].name} has {size[0]} x {size[1]}"
            )
        first = int(self.from_one)
        counted = (values != ignored) & (values != 0) if self.from_one else values != ignored
        wrong = values[counted & ((values >= classes + first) | (values < first))]
        if wrong.numel():
            raise NabnError(
                f"mask {path} has the class index {int(wrong.max())}, but the network has {classes} classes, {first} "
                f"to {classes - 1 + first}; {ignored} counts for nothing, ignore_index (--ignore-index) sets another "
                "value"
            )
        return torch.where(counted, values - first, ignored)


@dataclass(frozen=True, kw_only=True)
class MaskFolder:
    """The two parts of a data folder.

    Attributes:
        train: Images that calibration takes, whether they have masks or not.
        val: What is measured on.
        names: Of the classes, from ``classes.txt``; None: there is no such file.
    """

    train: MaskedImages
    val: MaskedImages
    names: list[str] | None


def open_masks(root: str | Path) -> MaskFolder:
    """List the images of both parts below `root`.

    Raises:
        NabnError: a folder is missing or holds no image, or ``classes.txt`` names a class twice.
    """
    root = Path(root)
    parts = {}
    for part in ("train", "val"):
        folder = first_folder(root, [f"images/{part}", part], LAYOUT)
        names = [f"masks/{part}", f"annotations/{part}", f"{part}annot", f"{part}_masks"]
        masks = next((root / name for name in names if (root / name).is_dir()), None)
        parts[part] = MaskedImages(images=list_images(folder, LAYOUT), masks=masks, root=folder)
    if parts["val"].masks is None:
        first_folder(root, names, LAYOUT)
    return MaskFolder(**parts, names=_read_names(root / NAMES))


def _read_names(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise NabnError(f"{path} cannot be read: {error}") from error
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        raise NabnError(f"{path} must hold a class name a line, each once, got {twice or 'none'!r}")
    return names


def _read_mask(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise NabnError(f"cannot read mask {path}: {error}") from error
    if values.ndim != 2:
        raise NabnError(f"mask {path} must hold one class index per pixel, got an image of mode {mode}")
    return torch.from_numpy(values.astype(np.int64))


def largest_index(part: MaskedImages, ignored: int) -> int:
    """Return the largest class index in the masks of a part.

    Raises:
        NabnError: no pixel of them has a class.
    """
    largest = -1
    for place in range(len(part.images)):
        values = _read_mask(part.mask_path(place))
        values = values[values != ignored]
        largest = max(largest, int(values.max()) if values.numel() else -1)
    if largest < 0:
        raise NabnError(f"no pixel of the masks in {part.masks} has a class; {ignored} counts for nothing")
    return largest


class Overlaps:
    """Pixels by true and found class: mIoU, mean accuracy and the share of pixels that are right, as mmseg has them.

    Args:
        classes: How many there are.
        ignored: The value of pixels that count for nothing.
    """

    def __init__(self, classes: int, ignored: int = IGNORED) -> None:
        self.classes = check_count("classes", classes, minimum=1)
        self.ignored = ignored
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, found: Tensor, truth: Tensor) -> None:
        """Take in one image: the classes found and the true ones, each ``[H, W]``."""
        counted = truth != self.ignored
        pairs = truth[counted] * self.classes + found.cpu()[counted]
        self.counts += torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)

    def numbers(self, names: Sequence[str], *, per_class: bool = False) -> dict[str, float]:
        """Return ``mIoU``, ``aAcc`` and ``mAcc`` in percent; a class that is nowhere counts in no mean.

        Args:
            names: Of the classes.
            per_class: Also ``mIoU/NAME`` of each class that the ground truth has.
        """
        counts = self.counts.double()
        right, truth = counts.diagonal(), counts.sum(1)
        share = 100 * right / (truth + counts.sum(0) - right)  # 0/0 is NaN
        numbers = {
            "mIoU": float(share.nanmean()),
            "aAcc": float(100 * right.sum() / truth.sum()),
            "mAcc": float((100 * right / truth).nanmean()),
        }
        if per_class:
            numbers |= {f"mIoU/{names[i]}": float(share[i]) for i in range(self.classes) if truth[i]}
        return numbers
