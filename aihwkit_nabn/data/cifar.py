"""A CIFAR-10 subset in one ``.npz`` file, and the augmentation its networks are trained with."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aihwkit_nabn.data.classification import ImageSet, cropped_at_random
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import check_seed

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PADDING = 4  # pixels


def load_cifar_subset(path: str | Path) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images of a file, not yet normalised.

    Args:
        path: ``.npz`` file with ``train_images`` and ``test_images``, ``[N, 3, 32, 32]`` uint8, and the ``..._labels``.

    Returns:
        Two sets with images in [0, 1], black 0; see `normalise`.

    Raises:
        NabnError: the file is missing, damaged, or lacks one of the arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise NabnError(f"data file {path} does not exist")
    try:
        with np.load(path) as file:
            train, test = (_image_set(file, part) for part in ("train", "test"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise NabnError(f"data file {path} is not a CIFAR subset: {error}") from error
    return train, test


def _image_set(file: np.lib.npyio.NpzFile, part: str) -> ImageSet:
    images, labels = torch.from_numpy(file[f"{part}_images"]), torch.from_numpy(file[f"{part}_labels"])
    return ImageSet(images=images.float() / 255.0, labels=labels.long())


def normalise(images: Tensor) -> Tensor:
    """Return ``[N, 3, H, W]`` images in [0, 1] as the network takes them."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def crop_and_flip(images: Tensor, *, padding: int = PADDING, seed: int = 0) -> Tensor:
    """Augment each image once: pad with black, crop at random to the old size, mirror half of them.

    Args:
        images: ``[N, C, H, W]`` in [0, 1], before normalisation, for black must be 0.
        padding: Black pixels on every side.
        seed: Fixes the choices.

    Returns:
        The augmented images, of the same shape.
    """
    generator = torch.Generator().manual_seed(check_seed("seed", seed))
    cropped = cropped_at_random(images, padding, generator)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], cropped.flip(-1), cropped)
