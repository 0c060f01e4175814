"""A hook for hardware-aware training with the upstream ``train.py`` of mmdetection and mmsegmentation."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from torch import nn

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.openmmlab.checkpoints import FitCheckpoint
from aihwkit_nabn.openmmlab.iterations import unwrapped
from aihwkit_nabn.openmmlab.settings import build_rpu_config
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import check_seed, derive_seed
from aihwkit_nabn.times import parse_time
from aihwkit_nabn.training.noise import TrainingNoise, matched_noise
from aihwkit_nabn.training.weight_noise import WeightNoise


@HOOKS.register_module()
class HardwareAwareTrainingHook(Hook):
    """Trains with the noise of an analog chip in the weights, as aihwkit's hardware-aware training does.

    ``custom_hooks = [dict(type='HardwareAwareTrainingHook', rpu_config=dict(type='PCMPreset'), t_inference='1d')]``

    In every iteration the weights that would lie on tiles carry new normal noise during forward and backward pass; the
    optimizer steps from the weights without noise, which are then clipped. Validations and checkpoints see the weights
    without noise, so that a checkpoint is one of the plain network, for every tool. Training can be resumed: the noise
    depends on the seed and the iteration only. Use it for fine-tuning: `load_from` a trained checkpoint, a tenth of its
    learning rate, a few epochs. Converters (``inp_bits``, ``out_bits``) are not simulated while training.

    Args:
        rpu_config: The chip's noise setting, see `build_rpu_config`; training draws the weight noise that matches it,
            see `aihwkit_nabn.training.matched_noise`.
        t_inference: Time after programming that the noise is matched at: seconds or text such as ``'1d'``.
        strength: Factor on the noise: 1 matches the chip, 0 trains without noise.
        clip_sigma: Weights are clipped at this many standard deviations of their layer after each step; None: never.
        exclude: Names of modules that stay digital, ``*`` and ``?`` match; or files that `nabn place` wrote.
        seed: Of the noise; each rank draws its own.

    Raises:
        NabnError: an argument has a value that is not allowed.
    """

    # Before hooks that average weights or write checkpoints, which are to see them without noise.
    priority = "VERY_HIGH"

    def __init__(
        self,
        rpu_config: Any,
        t_inference: float | str = 0.0,
        strength: float = 1.0,
        clip_sigma: float | None = 2.5,
        exclude: Exclude = (),
        seed: int = 0,
    ) -> None:
        self.name, self.rpu_config = build_rpu_config(rpu_config)
        self.t_inference = parse_time(t_inference)
        self.strength = check_number("strength", strength, minimum=0.0)
        if clip_sigma is not None:
            check_number("clip_sigma", clip_sigma, exclusive_minimum=0.0)
        self.clip_sigma = clip_sigma
        self.exclude = excluded_names(exclude)
        self.seed = check_seed("seed", seed)
        self._noise: WeightNoise | None = None
        self._handles: list[Any] = []

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Let mmengine find the weights in the checkpoint that training starts from."""
        FitCheckpoint().after_load_checkpoint(runner, checkpoint)

    def before_train(self, runner: Any) -> None:
        """Find the weights and measure the noise, after the checkpoint has been loaded."""
        model = unwrapped(runner.model)
        noise = self.noise_for(model)
        columnwise = bool(self.rpu_config.mapping.weight_scaling_columnwise)
        self._noise = weights = WeightNoise(
            model, noise, clip_sigma=self.clip_sigma, columnwise=columnwise, exclude=self.exclude
        )
        wrapper = runner.optim_wrapper
        for each in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
            self._handles += [
                each.optimizer.register_step_pre_hook(lambda *_: weights.remove()),
                each.optimizer.register_step_post_hook(lambda *_: weights.clip()),
            ]
        runner.logger.info(
            f"{type(self).__name__}: {self.name} at {self.t_inference:g} s, so training at {noise}"
            f"{' of each output' if columnwise else ''}\n{weights.report}"
        )

    def noise_for(self, model: nn.Module) -> TrainingNoise:
        """Return the noise to train a model at."""
        return matched_noise(model, self.rpu_config, self.t_inference, exclude=self.exclude).scaled(self.strength)

    @property
    def report(self) -> str:
        """What carries noise while training and what does not, in words; empty outside a training."""
        return "" if self._noise is None else str(self._noise.report)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Draw noise into the weights."""
        if self._noise is None:
            return
        device = next(runner.model.parameters()).device
        generator = torch.Generator(device=device)
        generator.manual_seed(derive_seed(self.seed, "training noise", runner.iter, get_rank()))
        self._noise.add(generator)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the noise out where the optimizer made no step: gradients accumulate, or were not finite."""
        self._remove()

    def after_train(self, runner: Any) -> None:
        """Let go of the optimizer."""
        self._remove()
        while self._handles:
            self._handles.pop().remove()
        self._noise = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Say in the checkpoint how it was trained."""
        checkpoint.setdefault("meta", {})["hardware_aware_training"] = (
            f"{self.name}, t={self.t_inference:g}, strength={self.strength:g}, clip_sigma={self.clip_sigma}"
        )

    def _remove(self) -> None:
        if self._noise is not None:
            self._noise.remove()
