"""Hardware-aware training of a config's model from Python, with mmengine's own runner and the config's own data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from mmengine.hooks import Hook

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.rewiring import copy_whole
from aihwkit_nabn.openmmlab.config import register_modules, scope_of, type_name
from aihwkit_nabn.openmmlab.iterations import unwrapped
from aihwkit_nabn.openmmlab.training import HardwareAwareTrainingHook
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.training import TrainedModel, TrainingNoise
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.training.report import TrainingReport

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

_OURS = ("AnalogHook", "HardwareAwareTrainingHook")
_SHARE = 0.1  # of the learning rate that the config trains with, as aihwkit's recipe has it


def check_training(config: Config, learning_rate: float | None = None) -> float:
    """Return the learning rate to train a config's model with: the one asked for, or a tenth of the config's.

    Raises:
        NabnError: the config does not say how it is trained, or at which learning rate.
    """
    for field in ("train_dataloader", "optim_wrapper"):
        if not config.get(field):
            raise NabnError(f"config {config.filename!r} has no {field}; hardware-aware training needs one")
    if learning_rate is not None:
        return learning_rate
    own = (config.optim_wrapper.get("optimizer") or {}).get("lr")
    if not isinstance(own, (int, float)):
        raise NabnError(f"config {config.filename!r} has no optim_wrapper.optimizer.lr; give a learning rate")
    return _SHARE * own


def train_config(
    config: Config,
    checkpoint: str,
    model: nn.Module,
    *,
    noise: TrainingNoise,
    rpu_config: Any,
    recipe: Recipe,
    work_dir: str,
    workers: int | None = None,
) -> TrainedModel:
    """Fine-tune a config's model with the noise of a chip in its weights, as `HardwareAwareTrainingHook` does.

    The config's data, losses and optimizer are used; its schedule is replaced by a cosine over the epochs, and it
    neither validates nor writes checkpoints on the way.

    Args:
        config: From `load_config`; not changed.
        checkpoint: The trained weights to start from.
        model: The config's digital network; not changed.
        noise: What is drawn into the weights.
        rpu_config: The chip's configuration.
        recipe: Its seed is that of the noise, the order of the images and their augmentation.
        work_dir: Folder of mmengine's logs.
        workers: Processes that read images; None: as the config has it.

    Raises:
        NabnError: see `check_training`.
    """
    from mmengine.runner import Runner

    rate, epochs = check_training(config, recipe.learning_rate), recipe.epochs
    started = time.perf_counter()
    register_modules(scope_of(config))
    watch = _Watch()
    with isolated_rng(derive_seed(recipe.seed, "training")):
        runner = Runner.from_cfg(_training_config(config, checkpoint, recipe, rate, workers, work_dir))
        runner.register_hook(_AtNoise(model, noise, rpu_config, recipe))
        runner.register_hook(watch)
        runner.train()
    twin = copy_whole(model)
    twin.load_state_dict(unwrapped(runner.model).state_dict())
    report = TrainingReport(
        noise=str(noise),
        std=noise.std,
        epochs=epochs,
        images=watch.images // epochs,
        images_seen=watch.images,
        steps=runner.iter,
        seconds=time.perf_counter() - started,
        losses=tuple(watch.losses),
        settings={
            "optimizer": str(config.optim_wrapper.optimizer.get("type")),
            "learning_rate": rate,
            "schedule": "cosine",
            "clip_sigma": recipe.clip_sigma,
            "seed": recipe.seed,
            "converters": False,
        },
        on_tiles=watch.on_tiles,
    )
    return TrainedModel(model=twin.eval(), report=report)


def _training_config(
    config: Config, checkpoint: str, recipe: Recipe, rate: float, workers: int | None, work_dir: str
) -> Config:
    cfg = config.copy()
    cfg.load_from, cfg.resume, cfg.work_dir, cfg.launcher = checkpoint, False, work_dir, "none"
    for part in ("val", "test"):
        for field in (f"{part}_dataloader", f"{part}_evaluator", f"{part}_cfg"):
            cfg[field] = None
    loader = cfg.train_dataloader
    if type_name(loader.get("sampler", {}).get("type")) == "InfiniteSampler":  # of trainings counted in iterations
        loader.sampler = {"type": "DefaultSampler", "shuffle": True}
    if workers is not None:
        loader.num_workers = workers
    if not loader.get("num_workers"):
        loader.persistent_workers = False
    cfg.train_cfg = {"by_epoch": True, "max_epochs": recipe.epochs}
    cfg.optim_wrapper.optimizer.lr = rate
    cfg.param_scheduler = [
        {"type": "CosineAnnealingLR", "T_max": recipe.epochs, "by_epoch": True, "convert_to_iter_based": True}
    ]
    cfg.default_hooks = {**(cfg.get("default_hooks") or {}), "checkpoint": None}
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or () if type_name(hook.get("type")) not in _OURS]
    cfg.randomness = {"seed": derive_seed(recipe.seed, "training") % 2**32}
    cfg.log_level = "WARNING"
    cfg.experiment_name = f"hardware_aware_{time.time_ns()}"
    return cfg


class _AtNoise(HardwareAwareTrainingHook):
    """Trains a network that is loaded already at a noise that is known already."""

    def __init__(self, model: nn.Module, noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> None:
        super().__init__(rpu_config, clip_sigma=recipe.clip_sigma, seed=recipe.seed)
        self._model, self._given = model, noise

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self._model.state_dict()  # whichever of the file's weights these are

    def noise_for(self, model: nn.Module) -> TrainingNoise:
        return self._given


class _Watch(Hook):
    """Counts images and keeps the mean loss of each epoch."""

    priority = "LOWEST"  # after the noise is in

    def __init__(self) -> None:
        self.images = 0
        self.losses: list[float] = []
        self.on_tiles = ""
        self._epoch: list[float] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if not self.on_tiles:
            self.on_tiles = next((hook.report for hook in runner.hooks if isinstance(hook, _AtNoise)), "")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.images += len(data_batch["inputs"])
        loss = float(torch.as_tensor((outputs or {}).get("loss", torch.nan)).detach())
        if not loss < float("inf"):
            raise NabnError(f"the loss became {loss:g} in epoch {len(self.losses) + 1}: take a smaller learning rate")
        self._epoch.append(loss)

    def after_train_epoch(self, runner: Any) -> None:
        self.losses.append(sum(self._epoch) / max(len(self._epoch), 1))
        self._epoch = []
