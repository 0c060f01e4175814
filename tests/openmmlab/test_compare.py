"""`nabn compare` on a config: its own data and optimizer, a network trained once per noise, the same chips for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import EvaluationResult
from aihwkit_nabn.openmmlab.config import load_config
from aihwkit_nabn.openmmlab.hwa import check_training, train_config
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.noise import matched_noise
from aihwkit_nabn.training.recipe import Recipe

OPTIONS = ["--noise", "gaussian:sigma=0.1", "--chips", "1", "--epochs", "2", "--wrong", "0.25", "--methods", "paired"]
OPTIONS += ["--calibration-images", "4"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "metric"), [("detector", "coco/bbox_mAP"), ("segmentor", "mIoU")])
def test_a_config_against_retraining(name: str, metric: str, request, tmp_path: Path, capsys) -> None:
    case, out = request.getfixturevalue(name), tmp_path / "out"
    arguments = ["compare", str(case.path), str(case.checkpoint), *OPTIONS, "--out", str(out)]
    assert run(cli.app, arguments) == 0
    printed = capsys.readouterr().out
    assert "HWA + paired, against the same training alone" in " ".join(printed.split())
    assert "Average Precision" not in printed and "2 epochs of" in printed
    assert (out / "logs" / "output.txt").stat().st_size > 0
    result = EvaluationResult.from_json(out / "results.json")
    assert result.methods == ["uncalibrated", "paired", "HWA", "HWA, noise / 4", "HWA + paired"]
    assert all(metric in record.metrics for record in result.records) and len(result.records) == 5
    price = {row["label"]: row for row in result.settings["price"]}
    n = price["HWA"]["images"]
    assert n > 0 and price["HWA"]["images_passed"] == 2 * n and price["paired"]["labels"] == 0
    assert {path.name for path in (out / "trained").iterdir()} == {
        "gaussian_sigma_0.1_hwa.safetensors",
        "gaussian_sigma_0.1_hwa_x0.25.safetensors",
    }
    values = {record.method: record.metrics for record in result.records}
    (out / "trained" / "gaussian_sigma_0.1_hwa.safetensors").unlink()  # training again gives the same network
    lines = (out / "records.jsonl").read_text().splitlines()
    (out / "records.jsonl").write_text("\n".join(line for line in lines if '"method": "HWA"' not in line) + "\n")
    assert run(cli.app, [*arguments, "--resume"]) == 0
    again = EvaluationResult.from_json(out / "results.json")
    assert {record.method: record.metrics for record in again.records} == values
    capsys.readouterr()
    assert run(cli.app, [*arguments, "--resume", "--calibration-images", "3"]) == 2
    assert "was made with" in capsys.readouterr().err


def test_training_moves_the_weights_at_the_configs_rate(detector, tmp_path: Path) -> None:
    config = load_config(detector.path)
    assert check_training(config) == pytest.approx(0.0001) and check_training(config, 0.5) == 0.5
    model = detector.model()
    model.load_state_dict(torch.load(detector.checkpoint, weights_only=True)["state_dict"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rpu_config = parse_preset("gaussian:sigma=0.1")
    recipe = Recipe(epochs=1, learning_rate=None, clip_sigma=2.5, seed=1)
    given = dict(rpu_config=rpu_config, work_dir=str(tmp_path))
    noise = matched_noise(model, rpu_config, 0.0)
    state = torch.get_rng_state()
    trained = train_config(config, str(detector.checkpoint), model, noise=noise, recipe=recipe, **given)
    assert torch.equal(torch.get_rng_state(), state) and not trained.model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    key = "bbox_head.retina_cls.weight"
    assert not torch.equal(trained.model.state_dict()[key], before[key])
    assert trained.report.images_seen == trained.report.images == 12 and trained.report.steps == 3
    assert len(trained.report.losses) == 1 and trained.report.losses[0] > 0 and trained.report.on_tiles
    assert "0.0001" in str(trained.report.settings["learning_rate"])
    recipe = replace(recipe, learning_rate=1e-30)
    still = train_config(config, str(detector.checkpoint), model, noise=TrainingNoise(std=0.0), recipe=recipe, **given)
    largest = 2.5 * before[key].std()
    assert torch.allclose(still.model.state_dict()[key], before[key].clamp(-largest, largest), atol=1e-6)


def test_a_config_that_does_not_say_how_it_is_trained(detector) -> None:
    config = load_config(detector.path)
    config.optim_wrapper = None
    with pytest.raises(NabnError, match="has no optim_wrapper"):
        check_training(config)
    config = load_config(detector.path)
    del config.optim_wrapper.optimizer["lr"]
    with pytest.raises(NabnError, match=r"no optim_wrapper\.optimizer\.lr"):
        check_training(config)
