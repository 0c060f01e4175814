from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aihwkit_nabn.data.classification import accuracy_on
from aihwkit_nabn.data.digits import CHECKPOINT, SPLITS, DigitsNet, load_demo_model, load_digits, shift_images
from aihwkit_nabn.errors import NabnError


def test_splits_are_disjoint_complete_and_stratified() -> None:
    parts = {split: load_digits(split) for split in SPLITS}
    assert sum(len(part) for part in parts.values()) == 1797
    seen = [tuple(image.flatten().tolist()) for part in parts.values() for image in part.images]
    assert len(set(seen)) == 1797
    for part, share in zip((parts["train"], parts["val"], parts["test"]), (0.60, 0.15, 0.25), strict=True):
        counts = part.labels.bincount(minlength=10).float()
        assert abs(len(part) / 1797 - share) < 0.01
        assert (counts / counts.mean() - 1).abs().max() < 0.1


def test_images_are_eight_by_eight_and_within_zero_and_one() -> None:
    images = load_digits("test").images
    assert images.shape[1:] == (1, 8, 8) and images.dtype == torch.float32
    assert float(images.min()) == 0.0 and float(images.max()) == 1.0


def test_the_split_is_the_same_every_time() -> None:
    assert torch.equal(load_digits("val").images, load_digits("val").images)
    assert load_digits("test").labels[:12].tolist() == [0, 9, 5, 6, 8, 4, 1, 7, 3, 2, 0, 3]


def test_unknown_split_suggests() -> None:
    with pytest.raises(NabnError, match="'tset'.*did you mean 'test'"):
        load_digits("tset")


def test_shift_moves_each_image_and_fills_with_black() -> None:
    images = torch.ones(200, 1, 8, 8)
    shifted = shift_images(images, max_shift=2, seed=1)
    assert shifted.shape == images.shape
    rows = shifted.amax(dim=(1, 3)).sum(dim=1)  # rows that still show something
    assert set(rows.tolist()) == {6.0, 7.0, 8.0}
    assert torch.equal(shifted, shift_images(images, max_shift=2, seed=1))
    assert not torch.equal(shifted, shift_images(images, max_shift=2, seed=2))
    assert torch.equal(shift_images(images, max_shift=0), images)


def test_shift_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    shift_images(torch.ones(3, 1, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_the_shipped_network_reads_digits() -> None:
    model = load_demo_model()
    assert not model.training
    assert accuracy_on(load_digits("test"))(model)["accuracy"] >= 98.0
    assert CHECKPOINT.stat().st_size < 1_000_000


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="does not exist; tools/train_digits.py writes it"):
        load_demo_model(tmp_path / "none.safetensors")


def test_file_that_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    path.write_bytes(b"no such thing")
    with pytest.raises(NabnError, match="is not a safetensors file"):
        load_demo_model(path)


def test_checkpoint_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    save_file(DigitsNet(width=8).state_dict(), path)
    with pytest.raises(NabnError, match="does not fit the model: of another shape conv1.weight") as error:
        load_demo_model(path)
    assert "\n" not in str(error.value)
