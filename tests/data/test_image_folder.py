from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from aihwkit_nabn.data.image_folder import ImageBatches, TransformedImages, choose, open_image_folder
from aihwkit_nabn.errors import NabnError


def _draw(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 4) -> Path:
    for part in ("train", "val"):
        for shade, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (12, 10), (40 * shade, 20 * index, 200)).save(folder / f"{index}.png")
    return root


def test_open(tmp_path: Path) -> None:
    data = open_image_folder(_draw(tmp_path))
    assert data.classes == ["cat", "dog"] and len(data.train) == 8 and len(data.val) == 8


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="does not exist"):
        open_image_folder(tmp_path / "none")
    with pytest.raises(NabnError, match="has no train/ folder"):
        open_image_folder(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(NabnError, match="has no val/ folder"):
        open_image_folder(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(NabnError, match="Couldn't find any class folder"):
        open_image_folder(tmp_path)


def test_class_without_images(tmp_path: Path) -> None:
    root = _draw(tmp_path)
    (root / "train" / "empty").mkdir()
    with pytest.raises(NabnError, match="empty"):
        open_image_folder(root)


def test_parts_with_different_classes(tmp_path: Path) -> None:
    root = _draw(tmp_path)
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(NabnError, match="only one of them has dog, wolf"):
        open_image_folder(root)


def test_choice_is_random_fixed_and_without_repetition() -> None:
    assert sorted(choose(10, None, 0)) == list(range(10)) != choose(10, None, 0)
    assert len(set(choose(10, 4, 1))) == 4
    assert choose(10, 4, 1) == choose(10, 4, 1) != choose(10, 4, 2)
    assert len(choose(3, 100, 0)) == 3
    with pytest.raises(NabnError, match="count"):
        choose(3, 0, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_repeat_whatever_reads_them(tmp_path: Path, workers: int) -> None:
    data = open_image_folder(_draw(tmp_path))
    transform = transforms.Compose([transforms.ToTensor(), transforms.RandomErasing(p=0.5), transforms.RandomCrop(6)])
    dataset = TransformedImages(data.train, list(range(8)), transform, seed=3)
    before = torch.get_rng_state()
    alone = torch.stack([dataset[index][0] for index in range(8)])
    assert torch.equal(before, torch.get_rng_state())
    batches = ImageBatches(dataset, batch_size=3, workers=workers, labelled=False)
    assert len(batches) == 3
    assert torch.equal(torch.cat(list(batches)), alone)
    assert torch.equal(torch.cat(list(batches)), alone)
    other = TransformedImages(data.train, list(range(8)), transform, seed=4)
    assert not torch.equal(torch.stack([other[index][0] for index in range(8)]), alone)


def test_small_sets_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_image_folder(_draw(tmp_path))
    read: list[str] = []
    monkeypatch.setattr(data.val, "loader", lambda path: read.append(path) or Image.open(path))
    dataset = TransformedImages(data.val, [5, 2], transforms.ToTensor(), seed=0)
    batches = ImageBatches(dataset, batch_size=2, labelled=True)
    for _ in range(3):
        ((images, labels),) = batches
        assert images.shape == (2, 3, 10, 12) and labels.tolist() == [1, 0]
    assert len(read) == 2
    monkeypatch.setattr("aihwkit_nabn.data.image_folder._CACHE_BYTES", 10)
    streamed = ImageBatches(dataset, batch_size=1, labelled=True)
    assert [len(list(streamed)) for _ in range(2)] == [2, 2]
    assert len(read) == 6


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"no image", b"P6\n20Q20\n255\n", b"P6\n99999 99999\n255\n"])
def test_damaged_image_is_named(tmp_path: Path, workers: int, content: bytes) -> None:
    root = _draw(tmp_path)
    (root / "val" / "cat" / "1.png").write_bytes(content)
    data = open_image_folder(root)
    dataset = TransformedImages(data.val, list(range(8)), transforms.ToTensor(), seed=0)
    with pytest.raises(NabnError, match=r"^cannot read image .*1\.png") as error:
        list(ImageBatches(dataset, batch_size=4, workers=workers, labelled=True))
    assert "Traceback" not in str(error.value)
