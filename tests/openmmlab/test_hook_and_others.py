"""Other hooks, checkpoints and the training itself are, with `AnalogHook`, what they are without it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Priority, Runner
from mmengine.runner.loops import ValLoop
from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab import AnalogHook
from aihwkit_nabn.openmmlab.checkpoints import CHIP_KEY
from tests.tensors import generator_states

NOISE = {"type": "PCMPreset"}
CALIBRATION = {"max_samples": 4, "batch_size": 4}
INSIDE = {"before_val_iter", "after_val_iter", "before_test_iter", "after_test_iter"}
POINTS = [f"{when}_{what}" for what in ("run", "train", "val", "train_epoch", "val_epoch", "train_iter", "val_iter")
          for when in ("before", "after")]  # fmt: skip
POINTS += ["before_save_checkpoint", "after_load_checkpoint", "before_test", "before_test_epoch", "after_test_epoch"]
POINTS += ["before_test_iter", "after_test_iter", "after_test"]
EMA = {"type": "EMAHook", "update_buffers": True, "momentum": 0.1}

BY_EPOCH = {
    "train_cfg.max_epochs": 2,
    "default_hooks.checkpoint.save_best": "auto",
    "default_hooks.checkpoint.published_keys": ["meta", "state_dict"],
    "custom_hooks": [EMA],
}
BY_ITERATION = {
    "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 4, "val_interval": 2},
    "train_dataloader.sampler": {"type": "InfiniteSampler", "shuffle": True},
    "default_hooks.checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 2, "save_best": "auto"},
    "log_processor": {"by_epoch": False},
    "custom_hooks": [EMA],
}


def digest(state: dict[str, Any]) -> str:
    """Names and values, in one word."""
    parts = [f"{name}:{hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest()}" for name, value in
             state.items() if isinstance(value, torch.Tensor)]  # fmt: skip
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def random_state() -> str:
    return hashlib.sha256(repr(generator_states()).encode()).hexdigest()


class Spy(Hook):
    """Writes down what a hook of its priority meets at every point."""

    def __init__(self, priority: str, log: list[tuple[Any, ...]]) -> None:
        self.priority, self.log = priority, log
        for point in POINTS:
            setattr(self, point, self._at(point))

    def _at(self, point: str) -> Callable[..., None]:
        def note(runner: Any, **given: Any) -> None:
            if point in INSIDE:
                return
            entry: tuple[Any, ...] = (self.priority, point, type(runner.model).__name__, random_state())
            entry += digest(runner.model.state_dict()), tuple(m.training for m in runner.model.modules())
            checkpoint = given.get("checkpoint") or {}
            entry += tuple(digest(checkpoint[key]) for key in ("state_dict", "ema_state_dict") if key in checkpoint)
            self.log.append(entry)

        return note


class Wrapper(nn.Module):
    """As for several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def test_step(self, batch: Any) -> Any:
        raise AssertionError("the digital model was tested")


class Sees(Hook):
    """Counts the iterations that meet a chip."""

    def __init__(self) -> None:
        self.on_chip: list[bool] = []

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.on_chip.append(bool(named_analog_layers(runner.model)))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.on_chip.append(bool(named_analog_layers(runner.model)))

    before_test_iter, after_test_iter = before_val_iter, after_val_iter


def build(case: Any, folder: Path, *hooks: Hook, **changes: Any) -> Runner:
    cfg = case.cfg(folder, load_from=str(case.checkpoint), randomness={"seed": 0})
    for key, value in changes.items():  # whole parts are replaced, not merged
        if "." in key:
            cfg.merge_from_dict({key: value})
        else:
            cfg[key] = value
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def spied(case: Any, folder: Path, hook: Hook | None, **changes: Any) -> tuple[list[tuple[Any, ...]], Runner]:
    log: list[tuple[Any, ...]] = []
    spies = [Spy(priority.name, log) for priority in Priority]
    # Half of them are registered first, half after ours: at the same priority that is the order they are called in.
    runner = build(case, folder, *spies[::2], *([] if hook is None else [hook]), *spies[1::2], **changes)
    runner.train()
    return log, runner


def run(case: Any, folder: Path, *hooks: Hook, **changes: Any) -> Runner:
    runner = build(case, folder, *hooks, **changes)
    runner.train()
    return runner


def states(folder: Path) -> dict[str, dict[str, Any]]:
    """The state dict of every checkpoint in a folder; a published one has its hash in its name."""
    return {
        path.name.partition("-")[0]: torch.load(path, weights_only=True)["state_dict"] for path in folder.glob("*.pth")
    }


@pytest.mark.parametrize("changes", [BY_EPOCH, BY_ITERATION], ids=["by epoch", "by iteration"])
def test_every_hook_meets_what_it_would_meet_without_a_chip(detector, tmp_path, changes):
    plain, without = spied(detector, tmp_path / "plain", None, **changes)
    log, runner = spied(detector, tmp_path / "chip", AnalogHook(NOISE, calibration=CALIBRATION), **changes)
    assert {entry[1] for entry in plain} > {"before_val", "after_val_epoch", "after_val", "before_save_checkpoint"}
    assert log == plain
    a, b = states(tmp_path / "plain"), states(tmp_path / "chip")
    assert a.keys() == b.keys() and any(name.startswith("best") for name in a)
    assert {name: digest(state) for name, state in a.items()} == {name: digest(state) for name, state in b.items()}
    assert digest(without.model.state_dict()) == digest(runner.model.state_dict())


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a wrapper"])
def test_the_iterations_meet_the_chip_and_nothing_else_does(detector, tmp_path, monkeypatch, wrapped):
    sees, hook = Sees(), AnalogHook(NOISE, calibration=None)
    runner = build(detector, tmp_path, hook, sees)
    if wrapped:
        monkeypatch.setitem(MODEL_WRAPPERS.module_dict, "Wrapper", Wrapper)
        runner.model = Wrapper(runner.model)
    digital = runner.model
    runner.test()
    assert sees.on_chip == [True] * 4 and runner.model is digital and hook.chip is None
    assert "run_iter" not in vars(runner.test_loop)


def test_the_best_checkpoint_of_moving_averages_is_the_chip_that_was_validated(detector, tmp_path):
    changes = {**BY_EPOCH, "train_cfg.max_epochs": 1}
    run(detector, tmp_path, AnalogHook(NOISE, seed=4, calibration=CALIBRATION), **changes)
    (best,) = (path for path in tmp_path.glob("best*.pth") if "-" not in path.name)
    assert CHIP_KEY in torch.load(best, weights_only=True)
    again = AnalogHook(NOISE, seed=4, calibration=CALIBRATION)
    again._calibrate = None  # would fail if it were called
    build(detector, tmp_path / "test", again, load_from=str(best)).test()  # and if it held other weights than its chip


def test_a_resumed_training_is_the_same_with_and_without_a_chip(detector, tmp_path):
    for part in ("plain", "chip"):
        folder = tmp_path / part
        hooks = [AnalogHook(NOISE, calibration=CALIBRATION)] if part == "chip" else []
        run(detector, folder, *hooks, **{**BY_EPOCH, "train_cfg.max_epochs": 1})
        run(detector, folder, *hooks, **{**BY_EPOCH, "resume": True, "load_from": str(folder / "epoch_1.pth")})
    a, b = states(tmp_path / "plain"), states(tmp_path / "chip")
    assert "epoch_2.pth" in a
    assert {name: digest(state) for name, state in a.items()} == {name: digest(state) for name, state in b.items()}


class Breaks(Hook):
    """Breaks the first validation off."""

    priority = "LOWEST"

    def __init__(self, place: str, ours: AnalogHook) -> None:
        self.place, self.ours, self.armed = place, ours, True

    def before_val_epoch(self, runner: Any) -> None:
        if self.armed and self.place == "network":
            self.ours.chip.val_step = self.interrupt
        if self.armed and self.place == "evaluator":
            runner.val_loop.evaluator.process = self.interrupt
        if self.armed and self.place == "loader":
            runner.val_loop.dataloader = Empty()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self.armed and self.place == "hook":
            self.interrupt()

    def interrupt(self, *args: Any, **kwargs: Any) -> None:
        self.armed = False
        raise KeyboardInterrupt


class Empty:
    """A loader that fails."""

    def __iter__(self) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["network", "evaluator", "hook", "loader"])
def test_training_goes_on_after_a_validation_that_was_broken_off(detector, tmp_path, place):
    plain = run(detector, tmp_path / "plain", **{"train_cfg.max_epochs": 2})
    ours, sees = AnalogHook(NOISE, calibration=CALIBRATION), Sees()
    runner = build(detector, tmp_path / "chip", ours, sees, **{"train_cfg.max_epochs": 2})
    breaks = Breaks(place, ours)
    runner.register_hook(breaks)
    digital, loop = runner.model, runner.val_loop
    loader, process = loop.dataloader, loop.evaluator.process
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert runner.model is digital and not named_analog_layers(digital)
    breaks.armed, sees.on_chip = False, []
    loop.dataloader, loop.evaluator.process = loader, process
    runner.train_loop.run()
    assert sees.on_chip and all(sees.on_chip)
    assert digest(runner.model.state_dict()) == digest(plain.model.state_dict())
    saved = torch.load(tmp_path / "chip" / "epoch_2.pth", weights_only=True)
    assert CHIP_KEY not in saved and digest(saved["state_dict"]) == digest(plain.model.state_dict())


class OwnPass(ValLoop):
    """Does not run its batches as mmengine's loops do."""

    def run(self) -> dict[str, float]:
        self.runner.call_hook("before_val_epoch")
        for batch in self.dataloader:
            self.runner.model.val_step(batch)
        self.runner.call_hook("after_val_epoch", metrics={"score": 0.0})
        return {"score": 0.0}


def test_a_loop_that_would_measure_the_digital_model_is_refused(detector, tmp_path):
    runner = build(detector, tmp_path, AnalogHook(NOISE))
    loop = runner.val_loop
    runner._val_loop = OwnPass(runner, loop.dataloader, loop.evaluator)
    with pytest.raises(NabnError, match="OwnPass measured the digital model"):
        runner.val()
    runner._val_loop = OwnPass(runner, loop.dataloader, loop.evaluator)
    runner._val_loop.run_iter = None
    with pytest.raises(NabnError, match="OwnPass has none"):
        runner.val()


def test_averages_that_are_tested_are_what_is_written(detector, tmp_path):
    """Moving averages leave the model again before the chip is written."""
    hook = AnalogHook(NOISE, calibration=CALIBRATION, out_file="chip.pth")
    runner = run(detector, tmp_path, hook, **{"custom_hooks": [{**EMA, "momentum": 0.5}]})
    runner.test_loop.run()  # without loading the checkpoint again
    averages = next(h for h in runner.hooks if type(h).__name__ == "EMAHook").ema_model.module.state_dict()
    written = torch.load(tmp_path / "chip.pth", weights_only=True)["state_dict"]
    assert digest(written) == digest(averages) != digest(runner.model.state_dict())
