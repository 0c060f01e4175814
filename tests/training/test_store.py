from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.store import TrainedStore


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


IMAGES = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def train(seed: int = 0) -> TrainedModel:
    batches: list[tuple[Tensor, Tensor]] = [(IMAGES, torch.arange(16) % 3)]
    return train_hardware_aware(net(), batches, noise=TrainingNoise(std=0.1), epochs=1, seed=seed)


def test_stored_networks_come_back(tmp_path: Path) -> None:
    first = TrainedStore(tmp_path, net(), resume=False).get("additive 0.10, hwa", {"epochs": 1}, train)
    assert [path.name for path in tmp_path.iterdir()] == ["additive_0.10_hwa.safetensors"]

    def never() -> TrainedModel:
        raise AssertionError("it is there already")

    again = TrainedStore(tmp_path, net(), resume=True).get("additive 0.10, hwa", {"epochs": 1}, never)
    assert again.report == first.report and not again.model.training
    assert torch.equal(again.model(IMAGES), first.model(IMAGES))
    with pytest.raises(NabnError, match="was trained with"):
        TrainedStore(tmp_path, net(), resume=True).get("additive 0.10, hwa", {"epochs": 2}, never)
    anew = TrainedStore(tmp_path, net(), resume=False).get("additive 0.10, hwa", {"epochs": 2}, lambda: train(seed=1))
    assert not torch.equal(anew.model(IMAGES), first.model(IMAGES))


def test_one_network_is_kept_in_memory_and_none_is_trained_twice(tmp_path: Path) -> None:
    store = TrainedStore(tmp_path, net(), resume=False)
    trained = []
    for name in ("a", "b", "a", "a"):
        found = store.get(name, {}, lambda name=name: trained.append(name) or train())
    assert trained == ["a", "b"]
    gone = weakref.ref(found.model)
    del found
    store.get("b", {}, train)
    gc.collect()
    assert gone() is None


def test_damaged_network_is_named(tmp_path: Path) -> None:
    store = TrainedStore(tmp_path, net(), resume=True)
    store.path("hwa").write_bytes(b"not a network")
    with pytest.raises(NabnError, match=r"hwa\.safetensors is damaged"):
        store.get("hwa", {}, train)
