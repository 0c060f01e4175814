from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab import HardwareAwareTrainingHook

NOISE = {"type": "GaussianWeightNoisePreset", "sigma": 0.05}
LAYER = "backbone.layer2.0.conv1"
ITERATIONS = 3  # of an epoch: twelve images in batches of four


class Watch(Hook):
    """Keeps what a layer's weight is at each stage of every iteration."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.before: list[torch.Tensor] = []
        self.after: list[torch.Tensor] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.before.append(weight_of(runner.model))

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.after.append(weight_of(runner.model))


def weight_of(model: Any) -> torch.Tensor:
    return model.get_submodule(LAYER).weight.detach().clone()


def train(case: Any, folder: Path, hook: Hook | None, **changes: Any) -> tuple[Any, Watch]:
    watch = Watch()
    settings = {"load_from": str(case.checkpoint), "randomness": {"seed": 0}}
    settings |= dict.fromkeys(("val_cfg", "val_dataloader", "val_evaluator"))
    cfg = case.cfg(folder, **{**settings, **changes})
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    if hook is not None:
        runner.register_hook(hook)
    runner.train()
    return runner, watch


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_weights_carry_new_noise_in_every_iteration_and_none_afterwards(request, name, tmp_path):
    case = request.getfixturevalue(name)
    start = torch.load(case.checkpoint, weights_only=True)["state_dict"][f"{LAYER}.weight"]
    # Without learning rate and clipping, what is left after each iteration is what was there before.
    hook = HardwareAwareTrainingHook(NOISE, clip_sigma=None)
    runner, watch = train(case, tmp_path, hook, **{"optim_wrapper.optimizer.lr": 0.0})
    assert len(watch.before) == ITERATIONS
    assert all(torch.equal(weight, start) for weight in watch.after)
    noises = [weight - start for weight in watch.before]
    for noise in noises:
        assert float(noise.std()) == pytest.approx(0.05 * float(start.abs().max()), rel=0.15)
    assert not torch.equal(noises[0], noises[1])
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert torch.equal(saved["state_dict"][f"{LAYER}.weight"], start)
    assert set(saved["state_dict"]) == set(torch.load(case.checkpoint, weights_only=True)["state_dict"])
    assert "strength=1" in saved["meta"]["hardware_aware_training"]
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


def test_weights_are_clipped_after_each_step_but_frozen_ones_are_not(detector, tmp_path):
    start = torch.load(detector.checkpoint, weights_only=True)["state_dict"]
    runner, watch = train(detector, tmp_path, HardwareAwareTrainingHook(NOISE, strength=0.0, clip_sigma=1.0))
    assert torch.equal(watch.before[0], start[f"{LAYER}.weight"])  # no noise at strength 0
    largest = [float(weight.abs().max()) for weight in (watch.before[0], *watch.after)]
    assert largest[1] == pytest.approx(float(watch.before[0].std()), rel=0.05) and largest[1] < 0.7 * largest[0]
    frozen = "backbone.layer1.0.conv1"
    assert torch.equal(runner.model.get_submodule(frozen).weight, start[f"{frozen}.weight"])


def test_gradients_accumulate_over_iterations_without_a_step(detector, tmp_path):
    start = torch.load(detector.checkpoint, weights_only=True)["state_dict"][f"{LAYER}.weight"]
    _, watch = train(
        detector,
        tmp_path,
        HardwareAwareTrainingHook(NOISE, clip_sigma=None),
        **{"optim_wrapper.accumulative_counts": 3},
    )
    assert torch.equal(watch.after[0], start) and torch.equal(watch.after[1], start)
    assert not torch.equal(watch.after[2], start) and not torch.equal(watch.before[1], start)


@pytest.mark.slow
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(detector, tmp_path):
    def hook() -> HardwareAwareTrainingHook:
        return HardwareAwareTrainingHook(NOISE, seed=2)

    # Flipping draws random numbers that mmengine does not store; without it only the order of images must agree.
    steps = [step for step in detector.cfg().train_dataloader.dataset.pipeline if step["type"] != "RandomFlip"]
    changes = {"train_dataloader.dataset.pipeline": steps}
    whole, _ = train(detector, tmp_path / "whole", hook(), **{**changes, "train_cfg.max_epochs": 2})
    train(detector, tmp_path / "parts", hook(), **changes)
    resumed, watch = train(
        detector, tmp_path / "parts", hook(), **{**changes, "train_cfg.max_epochs": 2, "resume": True,
        "load_from": str(tmp_path / "parts" / "epoch_1.pth")}
    )  # fmt: skip
    assert len(watch.before) == ITERATIONS
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, resumed.model.state_dict()[name], atol=1e-6), name
    plain, _ = train(detector, tmp_path / "plain", None, **{**changes, "train_cfg.max_epochs": 2})
    assert not torch.allclose(weight_of(plain.model), weight_of(whole.model), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rpu_config": {"type": "GausianPreset"}}, "unknown preset"),
        ({"strength": -1.0}, "strength must be a finite number >= 0"),
        ({"clip_sigma": 0.0}, "clip_sigma must be a finite number > 0"),
        ({"t_inference": "soon"}, "time must be seconds"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        HardwareAwareTrainingHook(**{"rpu_config": NOISE, **arguments})
