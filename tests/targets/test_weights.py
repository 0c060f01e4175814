from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.targets._weights import count_classes, fill_model, read_weights


def _build(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return _build(6).state_dict()


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_are_taken_off(
    state: dict[str, Tensor], tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    path = tmp_path / "model.pth"
    content = _prefixed(state, prefix)
    extra = {"epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save({wrapper: content, **extra} if wrapper else content, path)
    found = read_weights(path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert set(read_weights(tmp_path / "model.safetensors")) == set(state)


class _Harmful:
    """Something whose unpickling could run code."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {}, "model": _Harmful()}, path)
    with pytest.raises(NabnError, match="can run code") as error:
        read_weights(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors", "bad.pt"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"hello world\n", b"t0", b"}q"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(NabnError, match="is no checkpoint|is no safetensors file|can run code"):
        read_weights(path)


def test_no_file_and_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="is no file; give a .pth"):
        read_weights(tmp_path / "none.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(NabnError, match="no state dict found"):
        read_weights(tmp_path / "empty.pth")


def test_classes_are_counted_from_the_checkpoint(state: dict[str, Tensor]) -> None:
    assert count_classes(state, _build, "weights x") == 6


def test_counting_fails_clearly(state: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in state.items() if not name.startswith("3.")}
    with pytest.raises(NabnError, match="classifier is to be in 3.bias, 3.weight, but the file has none"):
        count_classes(without, _build, "weights x")
    state["3.bias"] = torch.zeros(9)
    with pytest.raises(NabnError, match=r"sizes \[6, 9\]"):
        count_classes(state, _build, "weights x")


def test_fill(state: dict[str, Tensor]) -> None:
    model = _build(6)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    fill_model(model, old, "weights x")
    assert torch.equal(model.state_dict()["0.weight"], state["0.weight"])


def test_fill_lists_what_does_not_fit(state: dict[str, Tensor]) -> None:
    state["extra"] = state.pop("0.bias")
    state["1.weight"] = torch.zeros(9)
    with pytest.raises(NabnError, match="missing 0.bias; unknown extra; of another shape 1.weight"):
        fill_model(_build(6), state, "weights x")
