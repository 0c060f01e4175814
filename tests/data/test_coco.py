"""Annotations in COCO's form: what is read, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aihwkit_nabn.data.coco import open_coco
from aihwkit_nabn.errors import NabnError


def _content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 8, "height": 6},
            {"id": 3, "file_name": "sub/b.png", "width": 5, "height": 5},
        ],
        "annotations": [{"id": 0, "image_id": 7, "category_id": 9, "bbox": [1, 1, 3, 2]}],
        "categories": [{"id": 9, "name": "cell"}, {"id": 2, "name": "dish"}],
    }


def _write(
    root: Path, content: object, *, images: str = "{}", annotations: str = "annotations/instances_{}.json"
) -> Path:
    for part in ("train", "val"):
        folder = root / images.format(part)
        (folder / "sub").mkdir(parents=True)
        Image.new("RGB", (8, 6)).save(folder / "a.png")
        Image.new("RGB", (5, 5)).save(folder / "sub" / "b.png")
        path = root / annotations.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("images", "annotations"),
    [
        ("{}", "annotations/instances_{}.json"),
        ("{}2017", "annotations/instances_{}2017.json"),
        ("images/{}2017", "annotations/instances_{}2017.json"),
        ("{}", "{}.json"),
    ],
)
def test_every_usual_layout_is_read(images: str, annotations: str, tmp_path: Path) -> None:
    found = open_coco(_write(tmp_path, _content(), images=images, annotations=annotations))
    assert [path.name for path in found.train] == ["a.png", "b.png"]
    assert found.val.categories == {2: "dish", 9: "cell"} and list(found.val.categories) == [2, 9]
    assert [len(entries) for entries in found.val.objects] == [1, 0]
    assert found.val.objects[0][0]["area"] == 6 and found.val.objects[0][0]["iscrowd"] == 0
    assert found.val.sizes([0, 1]) == [(8, 6), (5, 5)] and not found.val.has_masks
    assert found.train_annotations().categories == found.val.categories


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        part, place, field = path.split(".")
        content[part][int(place)][field] = value
        return content

    return change


def _append(part: str, entry: object) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | {part: [*content[part], entry]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: "no json", "instances_val.json cannot be read"),
        (lambda content: [1], "must be COCO's: lists images, annotations, categories; the file holds a list"),
        (lambda content: {"shapes": []}, "the file holds shapes"),
        (lambda content: content | {"images": {}}, "must be COCO's"),
        (lambda content: content | {"images": [], "annotations": []}, "has no images"),
        (lambda content: content | {"categories": [], "annotations": []}, "has no categories"),
        (_append("annotations", 3), r"annotations\[1\] must be a mapping, got 3"),
        (_append("images", {"id": 8}), r"images\[2\].file_name must be text, got None"),
        (_append("images", {"id": 7, "file_name": "a.png"}), "each id of images must be there once, got 7 twice"),
        (_append("categories", {"id": 4, "name": "cell"}), "each name of categories must be there once, got 'cell'"),
        (_append("images", {"id": 9, "file_name": "c.png"}), "of which 1 are not in .*val, such as c.png"),
        (_set("images.0.id", "7"), r"images\[0\].id must be an integer, got '7'"),
        (_set("categories.0.id", True), r"categories\[0\].id must be an integer, got True"),
        (_set("annotations.0.image_id", 8), r"annotations\[0\].image_id is 8, which none of its images has"),
        (_set("annotations.0.category_id", 1), r"annotations\[0\].category_id is 1, which none of its categories"),
        (_set("annotations.0.bbox", [1, 2, 3]), r"annotations\[0\].bbox must be \[x, y, width, height\]"),
        (_set("annotations.0.bbox", [1, 2, -3, 4]), r"annotations\[0\].bbox must be"),
        (_set("annotations.0.bbox", "box"), r"annotations\[0\].bbox must be .*, got 'box'"),
        (_set("annotations.0.area", "big"), r"annotations\[0\].area must be a number, got 'big'"),
    ],
)
def test_one_clear_error(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(NabnError, match=message):
        open_coco(_write(tmp_path, change(_content())))


def test_what_is_missing_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="data folder '.*nowhere' does not exist"):
        open_coco(tmp_path / "nowhere")
    with pytest.raises(NabnError, match=r"has no folder train or train2017 .*annotations/instances_train\.json"):
        open_coco(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(NabnError, match="train holds no image"):
        open_coco(tmp_path)
    root = _write(tmp_path / "other", _content())
    (root / "annotations" / "instances_val.json").unlink()
    with pytest.raises(NabnError, match=r"has no file annotations/instances_val\.json or .*val\.json"):
        open_coco(root)


def test_annotations_of_another_size_or_with_other_categories_are_refused(tmp_path: Path) -> None:
    root = _write(tmp_path, _set("images.1.width", 50)(_content()))
    found = open_coco(root)
    with pytest.raises(NabnError, match="b.png has 5 x 5 pixels, but .* says 50 x 5"):
        found.val.sizes([1])
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps(_append("categories", {"id": 4, "name": "other"})(_content())))
    with pytest.raises(NabnError, match="must have the same categories"):
        found.train_annotations()
