"""Images with masks: what is read, what is refused, and mIoU against mmsegmentation's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aihwkit_nabn.data.segmentation import Overlaps, largest_index, open_masks
from aihwkit_nabn.errors import NabnError


def _write(root: Path, images: str = "images/{}", masks: str | None = "masks/{}", mode: str = "L") -> Path:
    for part in ("train", "val"):
        folder = root / images.format(part)
        folder.mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(folder / "a.jpg")
        if masks is not None:
            where = root / masks.format(part)
            where.mkdir(parents=True)
            values = np.zeros((4, 6), dtype=np.uint8)
            values[1, 2], values[2] = 3, 255
            mask = Image.fromarray(values)
            if mode == "P":
                mask.putpalette([7, 8, 9] * 256)
            (mask if mode in ("L", "P") else mask.convert(mode)).save(where / "a.png")
    return root


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/{}", "masks/{}"), ("{}", "{}annot"), ("{}", "{}_masks"), ("images/{}", "annotations/{}")],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_every_usual_layout_is_read(images: str, masks: str, mode: str, tmp_path: Path) -> None:
    found = open_masks(_write(tmp_path, images, masks, mode))
    assert len(found.train.images) == len(found.val.images) == 1 and found.names is None
    mask = found.val.mask(0, 4, 255)
    assert mask.shape == (4, 6) and mask[1, 2] == 3 and mask[2].eq(255).all() and mask.dtype == torch.int64
    assert largest_index(found.val, 255) == 3 and largest_index(found.val, 3) == 255


def test_masks_are_held_against_their_image_and_the_classes(tmp_path: Path) -> None:
    root = _write(tmp_path)
    found = open_masks(root)
    with pytest.raises(
        NabnError, match=r"a.png has the class index 3, but the network has 3 classes, .*--ignore-index"
    ):
        found.val.mask(0, 3, 255)
    with pytest.raises(NabnError, match="has the class index 255"):
        found.val.mask(0, 4, 3)
    Image.new("L", (4, 6)).save(root / "masks/val/a.png")
    with pytest.raises(NabnError, match="a.png has 4 x 6 pixels, its image a.jpg has 6 x 4"):
        found.val.mask(0, 4, 255)
    Image.new("RGB", (6, 4)).save(root / "masks/val/a.png")
    with pytest.raises(NabnError, match="must hold one class index per pixel, got an image of mode RGB"):
        found.val.mask(0, 4, 255)
    (root / "masks/val/a.png").write_bytes(b"no image")
    with pytest.raises(NabnError, match="cannot read mask"):
        found.val.mask(0, 4, 255)
    (root / "masks/val/a.png").unlink()
    with pytest.raises(NabnError, match="a.jpg has no mask .*a.png; segmentation data is"):
        found.val.mask(0, 4, 255)


def test_masks_may_count_classes_from_one(tmp_path: Path) -> None:
    part = replace(open_masks(_write(tmp_path)).val, from_one=True)
    mask = part.mask(0, 3, 255)
    assert mask[1, 2] == 2 and mask.eq(255).sum() == 23
    with pytest.raises(NabnError, match="has the class index 3, but the network has 2 classes, 1 to 2; 255 counts"):
        part.mask(0, 2, 255)


def test_what_is_missing_is_named_with_the_layout(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="has no folder images/train or train; segmentation data is"):
        open_masks(tmp_path)
    with pytest.raises(NabnError, match="has no folder masks/val or .*val_masks"):
        open_masks(_write(tmp_path / "one", masks=None))
    root = _write(tmp_path / "two")
    Image.new("L", (6, 4), 255).save(root / "masks/val/a.png")
    with pytest.raises(NabnError, match="no pixel of the masks in .* has a class"):
        largest_index(open_masks(root).val, 255)


@pytest.mark.parametrize(("text", "message"), [("a\nb\na\n", "got 'a'"), ("\n", "got 'none'")])
def test_names_of_classes_are_there_once(text: str, message: str, tmp_path: Path) -> None:
    root = _write(tmp_path)
    (root / "classes.txt").write_text("road\ntree \n\ncar\n")
    assert open_masks(root).names == ["road", "tree", "car"]
    (root / "classes.txt").write_text(text)
    with pytest.raises(NabnError, match=message):
        open_masks(root)


def _maps(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Classes 0 to 4; 3 is never true, 4 neither true nor found; some pixels count for nothing."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for size in ((5, 7), (9, 4)):
        truth, found = torch.randint(0, 3, size, generator=generator), torch.randint(0, 4, size, generator=generator)
        truth[torch.rand(size, generator=generator) < 0.2] = 255
        pairs.append((found, truth))
    return pairs


def test_overlaps_as_counted_pixel_by_pixel() -> None:
    overlaps, pairs = Overlaps(5), _maps(1)
    for found, truth in pairs:
        overlaps.add(found, truth)
    numbers = overlaps.numbers(list("abcde"), per_class=True)
    seen = [
        (f, t)
        for found, truth in pairs
        for f, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True)
    ]
    seen = [(f, t) for f, t in seen if t != 255]
    share = [
        100 * sum(f == t == c for f, t in seen) / sum(c in (f, t) for f, t in seen) for c in range(4)
    ]  # the fifth class is nowhere
    assert numbers["mIoU"] == pytest.approx(sum(share) / 4) and share[3] == 0
    assert numbers["aAcc"] == pytest.approx(100 * sum(f == t for f, t in seen) / len(seen))
    assert {name for name in numbers if "/" in name} == {"mIoU/a", "mIoU/b", "mIoU/c"}
    assert numbers["mIoU/b"] == pytest.approx(share[1])


def test_the_same_numbers_as_mmsegmentation() -> None:
    pytest.importorskip("mmseg", reason="mmsegmentation is an extra")
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": list("abcde")}
    overlaps = Overlaps(5)
    for found, truth in _maps(2):
        overlaps.add(found, truth)
        metric.process({}, [{"pred_sem_seg": {"data": found[None]}, "gt_sem_seg": {"data": truth[None]}}])
    theirs = metric.evaluate(size=2)
    ours = overlaps.numbers(list("abcde"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == pytest.approx(float(value), abs=6e-3) for name, value in theirs.items())
