"""Images in files of any size: finding them, reading them, and cutting them into batches of one size each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from aihwkit_nabn.errors import NabnError

# What PIL raises for damaged files, and for those that tell of more pixels than any image has.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class FileList:
    """Files, in the form of torchvision's `ImageFolder`: places to labels, of which there are none."""

    paths: Sequence[Path]

    @property
    def samples(self) -> list[tuple[str, int]]:
        """Each path with the label 0."""
        return [(str(path), 0) for path in self.paths]

    @staticmethod
    def loader(path: str) -> Image.Image:
        """Read an image as RGB."""
        return pil_loader(path)


def list_images(folder: Path, wanted: str) -> list[Path]:
    """Return the image files below a folder, sorted.

    Args:
        folder: The folder.
        wanted: What it must hold, for messages.

    Raises:
        NabnError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
    if not found:
        raise NabnError(f"folder {folder} holds no image; {wanted}")
    return found


def first_folder(root: Path, names: Sequence[str], wanted: str) -> Path:
    """Return the first of some folders below `root` that exists.

    Args:
        root: The data folder.
        names: Below it, by preference.
        wanted: What it must hold, for messages.

    Raises:
        NabnError: there is none.
    """
    if not root.is_dir():
        raise NabnError(f"data folder {str(root)!r} does not exist")
    found = next((root / name for name in names if (root / name).is_dir()), None)
    if found is None:
        raise NabnError(f"data folder {str(root)!r} has no folder {' or '.join(names)}; {wanted}")
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Return an image's width and height in pixels, from its header.

    Raises:
        NabnError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
    except UNREADABLE as error:
        raise NabnError(f"cannot read image {path}: {error}") from error
    return width, height


def by_size(sizes: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Return places in groups of at most `most`, those of one size together, sizes in the order they first come.

    No image is then padded, so that how many go through together changes no result.

    Args:
        sizes: Of each image.
        most: Images in a group.
    """
    places: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        places.setdefault(size, []).append(place)
    return [group[i : i + most] for group in places.values() for i in range(0, len(group), most)]
