"""Drawn shapes for detection and segmentation: a data set that a command generates, the same everywhere.

Circles, rectangles and triangles of any colour lie on a textured background between rings, crosses and lines that count
as background. Images and masks are PNG, boxes COCO JSON. Everything is drawn with integer arithmetic, so that the same
seed gives the same pixels on every machine: ``python -m aihwkit_nabn.data.shapes data/shapes``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.files import parse_json, write_text
from aihwkit_nabn.seeding import check_seed, derive_seed

CLASSES = ("circle", "rectangle", "triangle")
SIZE = 96  # pixels, width and height
N_TRAIN, N_VAL = 800, 48
MARKER = "shapes.json"

_VERSION = 1
_SPLITS = ("train", "val")
_LARGEST = 4  # shapes in one image
_RADIUS = (9, 22)
_GAP = 3  # pixels between two shapes' boxes

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.int64)


def write_shapes(folder: str | Path, *, n_train: int = N_TRAIN, n_val: int = N_VAL, seed: int = 0) -> Path:
    """Write the data set into `folder`, unless exactly this one is there already; return the folder.

    It consists of ``train/`` and ``val/`` (RGB images of 96 x 96 pixels), ``train_masks/`` and ``val_masks/`` (one
    class index per pixel: 0 background, then the classes in their order), ``train.json`` and ``val.json`` (COCO boxes),
    and ``shapes.json``, which names the arguments. An interrupted or differing set is drawn again. An image depends on
    the seed, its split and its number only.

    Raises:
        NabnError: an argument is out of range, or `folder` holds such names but was not written by this function.
    """
    counts = {"train": check_count("n_train", n_train, minimum=1), "val": check_count("n_val", n_val, minimum=1)}
    wanted = {"version": _VERSION, "size": SIZE, "seed": check_seed("seed", seed), **counts}
    folder = Path(folder)
    marker = folder / MARKER
    if _read_marker(marker) == {**wanted, "complete": True} and _all_there(folder, counts):
        return folder
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(marker, json.dumps({**wanted, "complete": False}))
    for split in _SPLITS:
        _write_split(folder, split, counts[split], int(seed))
    write_text(marker, json.dumps({**wanted, "complete": True}))
    return folder


def draw_shapes(split: str, index: int, *, seed: int = 0) -> tuple[Image, Image, list[dict[str, Any]]]:
    """Draw one image of ``train`` or ``val``.

    Returns:
        The image ``[96, 96, 3]``, the class indices ``[96, 96]`` (0 background) and one dict per shape with
        ``category`` (1 to 3), ``bbox`` (x, y, width, height in pixels) and ``area``.

    Raises:
        NabnError: an argument is out of range.
    """
    if split not in _SPLITS:
        raise NabnError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    stream = np.random.default_rng(derive_seed(seed, "shapes", split, check_count("index", index)))
    image = _background(stream)
    for _ in range(stream.integers(2, 6)):
        image[_distractor(stream)] = stream.integers(0, 256, 3)
    classes = np.zeros((SIZE, SIZE), dtype=np.uint8)
    shapes: list[dict[str, Any]] = []
    taken = np.zeros((SIZE, SIZE), dtype=bool)
    for _ in range(stream.integers(1, _LARGEST + 1)):
        category = int(stream.integers(1, len(CLASSES) + 1))
        for _ in range(20):
            mask = _shape(stream, category)
            x, y, width, height = _box(mask)
            around = np.s_[max(0, y - _GAP) : y + height + _GAP, max(0, x - _GAP) : x + width + _GAP]
            if taken[around].any():
                continue
            taken[y : y + height, x : x + width] = True
            classes[mask] = category
            area = int(mask.sum())
            image[mask] = _paint(stream, image[mask].sum(axis=0) // area, area)
            shapes.append({"category": category, "bbox": [x, y, width, height], "area": area})
            break
    return image.astype(np.uint8), classes, shapes


def _background(stream: np.random.Generator) -> NDArray[np.int64]:
    image = np.broadcast_to(stream.integers(40, 216, 3), (SIZE, SIZE, 3)).astype(np.int64)
    for block, depth in ((24, 24), (6, 16), (1, 12)):  # patches, grain, noise
        cells = stream.integers(-depth, depth + 1, (SIZE // block, SIZE // block, 3))
        image = image + cells.repeat(block, axis=0).repeat(block, axis=1)
    return image.clip(0, 255)


def _paint(stream: np.random.Generator, behind: NDArray[np.int64], pixels: int) -> NDArray[np.int64]:
    """Return a grainy colour for `pixels` pixels that can be told from the mean colour behind them."""
    colour = stream.integers(0, 256, 3)
    while np.abs(colour - behind).sum() < 120:
        colour = stream.integers(0, 256, 3)
    return (colour + stream.integers(-12, 13, (pixels, 3))).clip(0, 255)


def _distractor(stream: np.random.Generator) -> Mask:
    kind = stream.integers(3)
    x, y = stream.integers(8, SIZE - 8, 2)
    if kind == 0:  # ring
        radius = stream.integers(6, 15)
        distance = (_COLUMNS - x) ** 2 + (_ROWS - y) ** 2
        return (distance <= radius**2) & (distance >= (radius - 2) ** 2)
    reach = stream.integers(4, 10)
    if kind == 1:  # cross
        dx, dy = np.abs(_COLUMNS - x), np.abs(_ROWS - y)
        return ((dx <= 1) & (dy <= reach)) | ((dy <= 1) & (dx <= reach))
    along_x, along_y = stream.integers(-30, 31, 2)  # line
    along_x += along_x == 0
    length = along_x**2 + along_y**2
    along = along_x * (_COLUMNS - x) + along_y * (_ROWS - y)
    across = along_x * (_ROWS - y) - along_y * (_COLUMNS - x)
    return (along >= 0) & (along <= length) & (across**2 <= 2 * length)


def _shape(stream: np.random.Generator, category: int) -> Mask:
    low, high = _RADIUS
    if category == 1:
        radius = stream.integers(low, high + 1)
        x, y = stream.integers(radius, SIZE - radius, 2)
        return (_COLUMNS - x) ** 2 + (_ROWS - y) ** 2 <= radius**2
    width, height = stream.integers(2 * low - 2, 2 * high - 2, 2)
    left, top = stream.integers(0, SIZE - width), stream.integers(0, SIZE - height)
    inside = (left <= _COLUMNS) & (left + width > _COLUMNS) & (top <= _ROWS) & (top + height > _ROWS)
    if category == 2:
        return inside
    # A triangle in the box: two corners on one side of it, the third somewhere in the middle of the opposite side.
    tip = left + stream.integers(width // 4, width - width // 4)
    row = _ROWS - top if stream.integers(2) else top + height - 1 - _ROWS
    left_edge = (_COLUMNS - tip) * (height - 1) >= (left - tip) * row
    right_edge = (_COLUMNS - tip) * (height - 1) <= (left + width - 1 - tip) * row
    return inside & left_edge & right_edge


def _box(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _write_split(folder: Path, split: str, count: int, seed: int) -> None:
    from PIL import Image as PillowImage

    for name in (split, f"{split}_masks"):
        (folder / name).mkdir(exist_ok=True)
        for old in (folder / name).glob("*.png"):
            old.unlink()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        image, classes, shapes = draw_shapes(split, index, seed=seed)
        name = f"{index:05d}.png"
        PillowImage.fromarray(image).save(folder / split / name)
        PillowImage.fromarray(classes).save(folder / f"{split}_masks" / name)
        images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
        for shape in shapes:
            box = {"category_id": shape["category"], "bbox": shape["bbox"], "area": shape["area"], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_text(folder / f"{split}.json", json.dumps(content))


def _read_marker(path: Path) -> object:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _all_there(folder: Path, counts: dict[str, int]) -> bool:
    return all(
        (folder / f"{split}.json").is_file()
        and all(len(list((folder / name).glob("*.png"))) == counts[split] for name in (split, f"{split}_masks"))
        for split in _SPLITS
    )


def _refuse_foreign(folder: Path) -> None:
    """Stop before images are deleted that somebody else put into a folder of our name."""
    if folder.exists() and not folder.is_dir():
        raise NabnError(f"folder {folder} is a file; name a folder for the shapes")
    names = [name for split in _SPLITS for name in (split, f"{split}_masks", f"{split}.json")]
    found = [name for name in names if (folder / name).exists()]
    if found and not (folder / MARKER).is_file():
        raise NabnError(f"folder {folder} holds other data ({', '.join(found)}); name an empty or a new one")


def _main() -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="python -m aihwkit_nabn.data.shapes", description="Write the drawn shapes.")
    parser.add_argument("folder", type=Path, help="where to, e.g. data/shapes")
    parser.add_argument("--train", type=int, default=N_TRAIN, help="training images (%(default)s)")
    parser.add_argument("--val", type=int, default=N_VAL, help="validation images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        folder = write_shapes(arguments.folder, n_train=arguments.train, n_val=arguments.val, seed=arguments.seed)
    except NabnError as error:
        parser.error(str(error))
    print(f"{arguments.train} training and {arguments.val} validation images in {folder}")


if __name__ == "__main__":
    _main()
