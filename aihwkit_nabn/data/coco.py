"""Detection data in COCO's form: ``annotations/instances_train.json``, ``instances_val.json``, ``train/``, ``val/``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aihwkit_nabn.data.image_files import first_folder, list_images, size_of
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import parse_json

LAYOUT = (
    "COCO's form is annotations/instances_train.json and annotations/instances_val.json with the images in train/ and "
    "val/ (COCO's own names with 2017 too; train.json and val.json beside the folders; images/train and images/val)"
)
_KINDS = {int: "an integer", str: "text", (int, float): "a number"}


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations:
    """What a COCO file says of some images.

    Attributes:
        source: The file.
        folder: Of the images.
        images: The file's entries of images.
        objects: For each image, its entries of annotations, with ``area`` and ``iscrowd``.
        categories: Names by the file's ids, sorted by id.
    """

    source: Path
    folder: Path
    images: list[dict[str, Any]]
    objects: list[list[dict[str, Any]]]
    categories: dict[int, str]

    @property
    def has_masks(self) -> bool:
        """Whether each object has a mask."""
        return all(entry.get("segmentation") for entries in self.objects for entry in entries)

    def has_objects(self, places: Sequence[int]) -> bool:
        """Whether images have an object that counts."""
        return any(not entry["iscrowd"] for place in places for entry in self.objects[place])

    def path(self, place: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.images[place]["file_name"]

    def sizes(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Return the width and height of images, from their files.

        Raises:
            NabnError: one cannot be read, or has another size than the annotations say.
        """
        found = []
        for place in places:
            size, entry = size_of(self.path(place)), self.images[place]
            told = (entry.get("width", size[0]), entry.get("height", size[1]))
            if told != size:
                raise NabnError(
                    f"image {self.path(place)} has {size[0]} x {size[1]} pixels, but {self.source} says "
                    f"{told[0]} x {told[1]}: its boxes would lie elsewhere"
                )
            found.append(size)
        return found


@dataclass(frozen=True, kw_only=True)
class CocoFolder:
    """The two parts of a data folder.

    Attributes:
        root: The folder.
        train: Images that calibration takes, whether they have annotations or not.
        val: What is measured on.
    """

    root: Path
    train: list[Path]
    val: CocoAnnotations

    @property
    def has_train_annotations(self) -> bool:
        """Whether there is a file of them."""
        return any((self.root / name).is_file() for name in _annotation_files("train"))

    def train_annotations(self) -> CocoAnnotations:
        """Return the annotations of ``train``, which only training needs.

        Raises:
            NabnError: there are none, they cannot be read, or their categories are not those of ``val``.
        """
        found = _annotations(self.root, "train")
        if found.categories != self.val.categories:
            raise NabnError(
                f"{found.source} and {self.val.source} must have the same categories, got {found.categories} and "
                f"{self.val.categories}"
            )
        return found


def open_coco(root: str | Path) -> CocoFolder:
    """Read the annotations of ``val`` and list the images of ``train`` below `root`.

    Raises:
        NabnError: a folder or a file is missing, a file is not COCO's, or an image that it names is not there.
    """
    root = Path(root)
    train = list_images(first_folder(root, _image_folders("train"), LAYOUT), LAYOUT)
    return CocoFolder(root=root, train=train, val=_annotations(root, "val"))


def _image_folders(part: str) -> list[str]:
    return [part, f"{part}2017", f"images/{part}", f"images/{part}2017"]


def _annotation_files(part: str) -> list[str]:
    return [f"annotations/instances_{part}.json", f"annotations/instances_{part}2017.json", f"{part}.json"]


def _annotations(root: Path, part: str) -> CocoAnnotations:
    names = _annotation_files(part)
    folder = first_folder(root, _image_folders(part), LAYOUT)
    source = next((root / name for name in names if (root / name).is_file()), None)
    if source is None:
        raise NabnError(f"data folder {str(root)!r} has no file {' or '.join(names)}; {LAYOUT}")
    return read_annotations(source, folder)


def read_annotations(source: Path, folder: Path) -> CocoAnnotations:
    """Read a COCO file of objects.

    Args:
        source: The file.
        folder: Where its images are.

    Raises:
        NabnError: it is no such file; the entry, the field and its value are named.
    """
    try:
        content = parse_json(source.read_bytes())
    except (OSError, ValueError) as error:
        raise NabnError(f"annotations {source} cannot be read: {error}") from error
    parts = ("images", "annotations", "categories")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(part), list) for part in parts):
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise NabnError(f"annotations {source} must be COCO's: lists {', '.join(parts)}; the file holds {held}")
    read = _Reader(source)
    categories = {read.field(e, "categories", i, "id", int): e["name"] for i, e in read.entries(content, "categories")}
    images = [entry for _, entry in read.entries(content, "images")]
    places = {entry["id"]: place for place, entry in enumerate(images)}
    objects: list[list[dict[str, Any]]] = [[] for _ in images]
    for i, entry in read.entries(content, "annotations"):
        for name, known, of in (("image_id", places, "images"), ("category_id", categories, "categories")):
            if read.field(entry, "annotations", i, name, int) not in known:
                raise NabnError(f"{source}: annotations[{i}].{name} is {entry[name]}, which none of its {of} has")
        width, height = read.box(entry, i)
        filled = {"area": width * height, "iscrowd": 0, **entry}
        objects[places[entry["image_id"]]].append(filled)
    for name, values in (("id of images", [e["id"] for e in images]), ("name of categories", categories.values())):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise NabnError(f"{source}: each {name} must be there once, got {twice[0]!r} twice")
    missing = [e["file_name"] for e in images if not (folder / e["file_name"]).is_file()]
    if missing:
        raise NabnError(
            f"{source} names {len(images)} images, of which {len(missing)} are not in {folder}, such as {missing[0]}"
        )
    if not images or not categories:
        raise NabnError(f"{source} has no {'categories' if images else 'images'}")
    return CocoAnnotations(
        source=source, folder=folder, images=images, objects=objects, categories=dict(sorted(categories.items()))
    )


_FIELDS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "categories": {"id": int, "name": str},
    "annotations": {},
}


class _Reader:
    """Takes fields out of entries, strictly."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def entries(self, content: Mapping[str, Any], part: str) -> list[tuple[int, dict[str, Any]]]:
        found = list(enumerate(content[part]))
        for i, entry in found:
            if not isinstance(entry, dict):
                raise NabnError(f"{self.source}: {part}[{i}] must be a mapping, got {entry!r}")
            for name, kind in _FIELDS[part].items():
                self.field(entry, part, i, name, kind)
        return found

    def field(self, entry: Mapping[str, Any], part: str, i: int, name: str, kind: Any) -> Any:
        value = entry.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise NabnError(f"{self.source}: {part}[{i}].{name} must be {_KINDS[kind]}, got {value!r}")
        return value

    def box(self, entry: Mapping[str, Any], i: int) -> tuple[float, float]:
        """Return the width and height of an entry's box."""
        box = entry.get("bbox")
        numbers = isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)
        if not isinstance(box, list) or not numbers or min(box[2:]) < 0:
            raise NabnError(
                f"{self.source}: annotations[{i}].bbox must be [x, y, width, height] in pixels, got {box!r}"
            )
        for name in ("area", "iscrowd"):
            if name in entry:
                self.field(entry, "annotations", i, name, (int, float))
        return box[2], box[3]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
