from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.simulator import build_preset
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.comparison import COMPENSATED, NoiseSetting, contenders, list_jobs, measure, row_order
from aihwkit_nabn.training.store import TrainedStore
from tests.networks import classifier


def net() -> nn.Module:
    return classifier(1, 4, 3)


IMAGES = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def score(model: nn.Module) -> dict[str, float]:
    return {"score": float(model(IMAGES).square().mean())}


def settings() -> list[NoiseSetting]:
    additive = Scenario(name="additive", rpu_config=build_preset("gaussian", sigma=0.1), strength=0.1)
    pcm = [Scenario(name=f"pcm {t}", rpu_config=build_preset("pcm"), t_inference=t) for t in ("1h", "1y")]
    return [
        NoiseSetting(name="additive", scenarios=(additive,)),
        NoiseSetting(name="PCM", scenarios=tuple(pcm), trained_at="1d"),
    ]


def test_rows_and_jobs() -> None:
    listed = contenders(["population", "paired"], ["paired"], wrong=(0.25,))
    scenarios = [scenario for setting in settings() for scenario in setting.scenarios]
    assert row_order(listed, scenarios) == [
        "uncalibrated",
        COMPENSATED,
        "population",
        "paired",
        "HWA",
        "HWA, noise / 4",
        "HWA + paired",
    ]
    jobs = [(s.name, chip, c.key, c.compensated) for _, s, chip, c in list_jobs(settings(), [4, 5], listed)]
    assert jobs.count(("pcm 1h", 4, "", False)) == 1
    assert not any(name == "additive" and not compensated for name, _, _, compensated in jobs)
    assert len(jobs) == len(set(jobs)) == 2 * (3 + 2 * 4)


def test_drift_compensation_is_measured_on_the_same_devices() -> None:
    listed = contenders(["paired"], [], wrong=())
    jobs = [job for job in list_jobs(settings(), [0], listed) if job[1].name == "pcm 1y" and not job[3].key]
    records = []
    for job in jobs:
        measure(job, net(), eval_fn=score, calibration_batches=[IMAGES], on_record=records.append)
    assert [(r.method, r.method_name) for r in records] == [
        ("uncalibrated", "none"),
        (COMPENSATED, "drift_compensation"),
        ("paired", "paired"),
    ]
    digital, uncalibrated, compensated = score(net())["score"], *(r.metrics["score"] for r in records[:2])
    # A year of drift takes two thirds of the conductance, and compensation brings the size of outputs back.
    assert uncalibrated < 0.6 * digital and compensated == pytest.approx(digital, rel=0.25)


def test_rows_of_trained_networks_and_skipping() -> None:
    listed = contenders([], ["paired"], wrong=(2.0,))
    job = next(job for job in list_jobs(settings(), [3], listed) if job[3].key == "hwa")
    result = measure(job, net(), eval_fn=score, calibration_batches=[IMAGES])
    assert [(r.method, r.method_name, r.chip_seed) for r in result.records] == [
        ("HWA", "hwa", 3),
        ("HWA + paired", "hwa+paired", 3),
    ]
    again = measure(job, net(), eval_fn=score, calibration_batches=[IMAGES], skip=["HWA + paired"])
    assert [r.method for r in again.records] == ["HWA"] and again.records[0].metrics == result.records[0].metrics


def test_bad_input_is_named() -> None:
    with pytest.raises(NabnError, match="different factors other than 1"):
        contenders([], [], wrong=(1.0,))
    with pytest.raises(NabnError, match="at least one Scenario"):
        NoiseSetting(name="empty", scenarios=())


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


def test_damaged_network_is_named(tmp_path: Path) -> None:
    store = TrainedStore(tmp_path, net(), resume=True)
    store.path("hwa").write_bytes(b"not a network")
    with pytest.raises(NabnError, match=r"hwa\.safetensors is damaged"):
        store.get("hwa", {}, train)
