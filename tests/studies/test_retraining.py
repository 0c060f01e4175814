from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.results import RecordLog
from aihwkit_nabn.studies import run_study
from aihwkit_nabn.studies.contenders import COMPENSATED, contenders
from aihwkit_nabn.studies.retraining import RetrainingStudy
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads import CalibrationRequest, Workload
from tests.studies.test_contenders import settings

RECIPE = Recipe(epochs=1, learning_rate=0.01, clip_sigma=2.5, seed=0)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


IMAGES = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def score(model: nn.Module) -> dict[str, float]:
    return {"score": float(model(IMAGES).square().mean())}


def workload(**changes: Any) -> Workload:
    model = net()

    def train(noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> TrainedModel:
        batches: list[tuple[Tensor, Tensor]] = [(IMAGES, torch.arange(16) % 3)]
        return train_hardware_aware(model, batches, noise=noise, rpu_config=rpu_config, epochs=1, seed=recipe.seed)

    given = {"model": model, "eval_fn": score, "calibration": lambda request: [IMAGES], "train": train, **changes}
    return Workload(**given)


def measured(folder: Path, *, methods: list[str], after: list[str], wrong: tuple[float, ...] = (), **more: Any):
    study = RetrainingStudy(
        more.pop("workload", None) or workload(),
        settings(),
        contenders(methods, after, wrong=wrong),
        chips=1,
        request=CalibrationRequest(n=16),
        recipe=RECIPE,
        out=folder,
        resume=True,
    )
    with RecordLog(folder / "records.jsonl", {}) as log:
        run_study(study, log)
        return study, study.result(log)


def test_drift_compensation_is_measured_on_the_same_devices(tmp_path: Path) -> None:
    _, result = measured(tmp_path, methods=["paired"], after=[])
    rows = {r.method: r for r in result.records if r.scenario == "pcm 1y"}
    assert {name: row.method_name for name, row in rows.items() if name != "HWA"} == {
        "uncalibrated": "none",
        COMPENSATED: "drift_compensation",
        "paired": "paired",
    }
    digital, uncalibrated, compensated = (
        score(net())["score"],
        *(rows[name].metrics["score"] for name in ("uncalibrated", COMPENSATED)),
    )
    # A year of drift takes two thirds of the conductance, and compensation brings the size of outputs back.
    assert uncalibrated < 0.6 * digital and compensated == pytest.approx(digital, rel=0.25)
    assert all("verified on" in text for text in result.settings["conversion"].values())


def test_rows_of_trained_networks_and_going_on(tmp_path: Path) -> None:
    _, result = measured(tmp_path, methods=[], after=["paired"], wrong=(2.0,))
    mine = [(r.method, r.method_name) for r in result.records if r.scenario == "additive"]
    assert mine == [
        ("uncalibrated", "none"),
        ("HWA", "hwa"),
        ("HWA, noise x 2", "hwa_x2"),
        ("HWA + paired", "hwa+paired"),
    ]
    assert {entry["row"] for entry in result.settings["training"].values()} == {"HWA", "HWA, noise x 2"}
    calls: list[nn.Module] = []

    def counting(model: nn.Module) -> dict[str, float]:
        calls.append(model)
        return score(model)

    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    dropped = next(i for i, line in enumerate(lines) if '"HWA + paired"' in line)
    path.write_text("".join(lines[:dropped] + lines[dropped + 1 :]))
    _, again = measured(tmp_path, methods=[], after=["paired"], wrong=(2.0,), workload=workload(eval_fn=counting))
    assert len(calls) == 2, "the trained network, read from its file, and the one row that was missing"
    assert [r.comparable() for r in again.records] == [r.comparable() for r in result.records]
    assert isinstance(again, EvaluationResult)


def test_what_cannot_be_trained_is_refused_before_anything(tmp_path: Path) -> None:
    with pytest.raises(NabnError, match="no labelled images"):
        measured(tmp_path, methods=[], after=[], workload=workload(train=None))

    def refuse(recipe: Recipe) -> None:
        raise NabnError(f"cannot train {recipe.epochs} epochs")

    with pytest.raises(NabnError, match="cannot train 1 epochs"):
        measured(tmp_path, methods=[], after=[], workload=workload(check_recipe=refuse))
