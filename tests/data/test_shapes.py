from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aihwkit_nabn.data import shapes
from aihwkit_nabn.data.shapes import CLASSES, MARKER, SIZE, draw_shapes, write_shapes
from aihwkit_nabn.errors import NabnError


def pixels(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.png")):
        digest.update(np.asarray(Image.open(path)).tobytes())
    return digest.hexdigest()


def test_the_pixels_are_these_on_every_machine() -> None:
    digest = hashlib.sha256()
    for index in range(3):
        image, classes, found = draw_shapes("val", index)
        digest.update(image.tobytes() + classes.tobytes() + json.dumps(found).encode())
    assert digest.hexdigest()[:16] == "088124fec13c9cd9"


def test_boxes_masks_and_classes_agree() -> None:
    seen = set()
    for index in range(20):
        image, classes, found = draw_shapes("train", index, seed=3)
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert 1 <= len(found) <= 4
        assert sum(shape["area"] for shape in found) == (classes > 0).sum()
        for shape in found:
            x, y, width, height = shape["bbox"]
            inside = classes[y : y + height, x : x + width]
            assert (inside == shape["category"]).sum() == shape["area"]
            assert inside.any(axis=0).all() and inside.any(axis=1).all()  # the box is tight
            seen.add(shape["category"])
    assert seen == {1, 2, 3}


def test_splits_seeds_and_numbers_give_other_images() -> None:
    images = [draw_shapes("train", 0), draw_shapes("val", 0), draw_shapes("train", 1), draw_shapes("train", 0, seed=1)]
    assert len({image.tobytes() for image, _, _ in images}) == 4


def test_the_files_hold_what_is_drawn(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "new" / "shapes", n_train=3, n_val=2, seed=5)
    for split, count in (("train", 3), ("val", 2)):
        content = json.loads((folder / f"{split}.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [f"{i:05d}.png" for i in range(count)]
        assert [category["name"] for category in content["categories"]] == list(CLASSES)
        assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        for index in range(count):
            image, classes, found = draw_shapes(split, index, seed=5)
            name = f"{index:05d}.png"
            assert np.array_equal(np.asarray(Image.open(folder / split / name)), image)
            assert np.array_equal(np.asarray(Image.open(folder / f"{split}_masks" / name)), classes)
            boxes = [entry["bbox"] for entry in content["annotations"] if entry["image_id"] == index]
            assert boxes == [shape["bbox"] for shape in found]
    assert not list(folder.rglob(".*"))


def test_a_complete_set_is_left_alone_and_others_are_drawn_again(tmp_path: Path) -> None:
    write_shapes(tmp_path, n_train=2, n_val=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_shapes(tmp_path, n_train=2, n_val=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    first = pixels(tmp_path)
    write_shapes(tmp_path, n_train=1, n_val=2, seed=1)  # fewer: nothing of the old set stays
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["00000.png"]
    write_shapes(tmp_path, n_train=2, n_val=2)
    assert pixels(tmp_path) == first


def test_an_interrupted_set_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(split: str, index: int, *, seed: int) -> object:
        if split == "val":
            raise KeyboardInterrupt
        return draw_shapes(split, index, seed=seed)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw_shapes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(tmp_path, n_train=1, n_val=1)
    assert json.loads((tmp_path / MARKER).read_text())["complete"] is False
    write_shapes(tmp_path, n_train=1, n_val=1)
    assert (tmp_path / "val" / "00000.png").is_file() and json.loads((tmp_path / MARKER).read_text())["complete"]
    (tmp_path / "train" / "00000.png").unlink()  # a lost image is noticed too
    write_shapes(tmp_path, n_train=1, n_val=1)
    assert (tmp_path / "train" / "00000.png").is_file()


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.png").write_bytes(b"precious")
    with pytest.raises(NabnError, match="holds other data .train.*name an empty"):
        write_shapes(tmp_path, n_train=1, n_val=1)
    assert (tmp_path / "train" / "mine.png").read_bytes() == b"precious"
    (tmp_path / "file").write_text("")
    with pytest.raises(NabnError, match="is a file"):
        write_shapes(tmp_path / "file", n_train=1, n_val=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"n_train": 0}, "n_train must be"), ({"n_val": 1.5}, "n_val must be"), ({"seed": -1}, "seed must be")],
)
def test_wrong_arguments_are_named(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        write_shapes(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(NabnError, match="split must be one of train, val, got 'test'"):
        draw_shapes("test", 0)
