from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from aihwkit_nabn.data.weights import count_classes, fill_model, read_checkpoint
from aihwkit_nabn.errors import NabnError


def _build(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


@pytest.fixture
def state() -> dict[str, Tensor]:
    return _build(6).state_dict()


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert set(read_checkpoint(tmp_path / "model.safetensors")) == set(state)


class _Harmful:
    """Something whose unpickling could run code."""


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {}, "model": _Harmful()}, path)
    with pytest.raises(NabnError, match="can run code") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["name,label\na.jpg,3\n", "{}", "a: 1\n", "0\n1\n", "\ufeffcats\n", "(dog"])
def test_text_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(NabnError, match=r"labels.csv is not a checkpoint") as error:
        read_checkpoint(path)
    assert "Python objects" not in str(error.value)


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors", "bad.pt"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"hello world\n", b"t0", b"}q"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(NabnError, match="is not a checkpoint|is not a safetensors file|can run code"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"hello world\n", b"t0", b"g1\n"])
def test_text_that_begins_as_an_instruction_of_a_pickle_is_told_from_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(NabnError, match="neither a zip archive nor a pickle"):
        read_checkpoint(tmp_path / "bad.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="is not a file; give a .pth"):
        read_checkpoint(tmp_path / "none.pth")


def _stand_in(module: str, name: str) -> type:
    return type(name, (dict,), {"__module__": module, "__qualname__": name})


@pytest.mark.parametrize(
    "module",
    ["lightning.fabric.utilities.data", "lightning_fabric.utilities.data", "pytorch_lightning.utilities.parsing"],
)
def test_what_training_scripts_save_beside_the_weights_is_read(
    state: dict[str, Tensor], tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _stand_in(module, "AttributeDict")  # pickle looks the class up when it writes
    for place in [module.rsplit(".", count)[0] for count in range(module.count(".") + 1)]:
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    monkeypatch.setattr(sys.modules[module], "AttributeDict", found, raising=False)
    content = {
        "state_dict": state,
        "hyper_parameters": found(lr=0.1, root=Path("data")),
        "args": argparse.Namespace(output_dir=Path("here")),
        "pytorch-lightning_version": "2.5.0",
    }
    torch.save(content, tmp_path / "last.ckpt")
    monkeypatch.undo()
    loaded = read_checkpoint(tmp_path / "last.ckpt")
    assert loaded["hyper_parameters"]["lr"] == 0.1 and str(loaded["args"].output_dir) == "here"


def test_classes_are_counted_from_the_checkpoint(state: dict[str, Tensor]) -> None:
    assert count_classes(state, _build, "weights x") == 6


def test_counting_fails_clearly(state: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in state.items() if not name.startswith("3.")}
    with pytest.raises(NabnError, match="classifier's tensors are 3.bias, 3.weight, but the file has none"):
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
