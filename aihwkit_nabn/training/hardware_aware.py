"""aihwkit's hardware-aware training: fine-tuning a network with labels while noise is drawn into its weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from aihwkit.optim import AnalogOptimizer
from aihwkit.simulator.parameters.base import RPUConfigBase
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.calibration.batches import batch_size, check_finite, default_forward
from aihwkit_nabn.errors import NabnError, check_count, check_number
from aihwkit_nabn.nn import NoiseAwareBatchNorm
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import check_seed, isolated_run
from aihwkit_nabn.training.digital import convert_for_training, digital_twin
from aihwkit_nabn.training.noise import TrainingNoise
from aihwkit_nabn.training.report import TrainedModel, TrainingReport
from aihwkit_nabn.training.settings import spare_degenerate, training_config

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]
LossFn = Callable[[nn.Module, Any], Tensor]
OPTIMIZER_OPTIONS = {"momentum": 0.9, "weight_decay": 5e-4}


def cross_entropy_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the cross entropy of a classifier on a batch ``(images, labels)``.

    Raises:
        NabnError: the batch is no such pair.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise NabnError(
            f"a training batch of type {type(batch).__name__} needs loss_fn(model, batch); without it a batch must be "
            "a pair of images and labels"
        )
    outputs = default_forward(model, batch)
    return F.cross_entropy(outputs, batch[1].to(outputs.device))


def train_hardware_aware(
    model: nn.Module,
    batches: Batches,
    *,
    noise: TrainingNoise,
    rpu_config: RPUConfigBase | None = None,
    loss_fn: LossFn = cross_entropy_loss,
    epochs: int = 10,
    learning_rate: float = 0.01,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    optimizer_options: Mapping[str, Any] | None = None,
    clip_sigma: float | None = 2.5,
    exclude: Exclude = (),
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainedModel:
    """Fine-tune a trained network for analog chips, with labels, as aihwkit does it.

    A copy goes on aihwkit's tiles; each batch sees weights with new noise, and gradients go to the weights without it;
    after every step of aihwkit's ``AnalogOptimizer`` the weights are clipped, and where the configuration scales them
    to the tile's range, remapped. Input ranges of converters are learned. The learning rate falls along a cosine. What
    aihwkit cannot hold stays digital, is trained too, and is named in the report. What requires no gradient is not
    changed.

    The result is a digital network of the same class. Give it to `aihwkit_nabn.evaluate` like the original: the same
    seeds program the same devices. Input ranges are set there from images, as for any model.

    Args:
        model: The trained digital network; neither it nor the caller's random generators are changed.
        batches: Batches with labels, run through once per epoch; or a function of the epoch's number (0, 1, ...) that
            returns them, e.g. newly augmented. Where their number is not known beforehand, the learning rate is
            constant in the first epoch.
        noise: What is drawn into the weights; `matched_noise` gives the one that suits a chip.
        rpu_config: The chip's configuration, for its mapping, converters and input ranges; None: perfect products.
        loss_fn: Called as ``loss_fn(model, batch)`` with the model in training mode; returns a scalar. Default: the
            cross entropy of ``(images, labels)``.
        epochs: Passes over the batches, >= 1.
        learning_rate: At the start, > 0; the recipe takes a tenth of what the network was trained with.
        optimizer: A torch optimizer's class.
        optimizer_options: Its options. Default, for SGD: ``momentum=0.9, weight_decay=5e-4``; for others none.
        clip_sigma: Weights are clipped at this many standard deviations of their layer after each step; None: never.
        exclude: Names of modules that stay digital, as `convert_to_noise_aware` takes them.
        seed: Fixes the noise and all other random numbers of the training.
        on_epoch: Called with the epoch's number and its mean loss.

    Raises:
        NabnError: an argument cannot work, a batch holds NaN, or the loss is not finite.
    """
    _check(model, batches, noise, {"loss_fn": loss_fn, "optimizer": optimizer}, on_epoch)
    check_count("epochs", epochs, minimum=1)
    check_number("learning_rate", learning_rate, exclusive_minimum=0.0)
    if clip_sigma is not None:
        check_number("clip_sigma", clip_sigma, exclusive_minimum=0.0)
    seed = check_seed("seed", seed)
    if optimizer_options is None:
        optimizer_options = OPTIMIZER_OPTIONS if optimizer is torch.optim.SGD else {}
    config = training_config(rpu_config, noise, clip_sigma)
    started = time.perf_counter()
    with isolated_run(model, seed), torch.enable_grad():
        analog: Any = convert_for_training(
            model, config, _excluded(model, exclude), specific_rpu_config_fun=spare_degenerate
        )
        stepper: Any = _optimizer(optimizer, analog, learning_rate, optimizer_options)
        losses, sizes, steps = _train(analog, model, batches, loss_fn, stepper, epochs, learning_rate, on_epoch)
        twin = digital_twin(model, analog.eval())
    report = TrainingReport(
        noise=str(noise),
        std=noise.std,
        epochs=epochs,
        images=sizes[0],
        images_seen=sum(sizes),
        steps=steps,
        seconds=time.perf_counter() - started,
        losses=tuple(losses),
        settings={
            "optimizer": optimizer.__name__,
            "optimizer_options": {name: repr(value) for name, value in optimizer_options.items()},
            "learning_rate": learning_rate,
            "schedule": "cosine",
            "clip_sigma": clip_sigma,
            "seed": seed,
            "converters": not config.forward.is_perfect,
        },
        on_tiles=str(analog.conversion_report),
    )
    return TrainedModel(model=twin, report=report)


def _train(
    analog: nn.Module,
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    stepper: Any,
    epochs: int,
    learning_rate: float,
    on_epoch: Callable[[int, float], None] | None,
) -> tuple[list[float], list[int], int]:
    losses, sizes, steps, per_epoch = [], [], 0, 0
    for epoch in range(epochs):
        _training_mode(analog, model)
        total, seen, index = 0.0, 0, 0
        of_epoch = batches(epoch) if callable(batches) else batches
        per_epoch = len(of_epoch) if isinstance(of_epoch, Sized) else per_epoch
        for index, batch in enumerate(of_epoch):
            place = f"training batch {index} of epoch {epoch}"
            check_finite(batch, place)
            progress = (epoch + (min(index / per_epoch, 1.0) if per_epoch else 0.0)) / epochs
            for group in stepper.param_groups:
                group["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
            stepper.zero_grad()
            loss = loss_fn(analog, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise NabnError(f"loss_fn must return a scalar tensor, got {loss!r}")
            if not math.isfinite(loss.item()):
                raise NabnError(f"the loss is {loss.item()} at {place}; a lower learning_rate may help")
            loss.backward()
            stepper.step()
            size = batch_size(batch)
            total, seen, steps = total + loss.item() * size, seen + size, steps + 1
        if not seen:
            raise NabnError(
                f"batches gave no batch in epoch {epoch}: it must be a list, a DataLoader or a function of the epoch"
            )
        per_epoch = index + 1
        losses.append(total / seen)
        sizes.append(seen)
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    return losses, sizes, steps


def _optimizer(kind: Any, analog: nn.Module, learning_rate: float, options: Mapping[str, Any]) -> Any:
    try:
        stepper = AnalogOptimizer(kind, analog.parameters(), lr=learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise NabnError(f"optimizer {kind.__name__} does not take {dict(options)!r}: {error}") from error
    stepper.regroup_param_groups(analog)
    return stepper


def _training_mode(analog: nn.Module, model: nn.Module) -> None:
    """Put the model into training mode, but not BatchNorm layers that the user's network has frozen for good.

    Those hold no parameters.
    """
    analog.train()
    digital = dict(model.named_modules())
    for name, module in analog.named_modules():
        if isinstance(module, NoiseAwareBatchNorm) and "weight" in digital[name]._buffers:
            module.eval()


def _excluded(model: nn.Module, exclude: Exclude) -> tuple[str, ...]:
    """Return what stays digital: attention too, whose joint weight aihwkit holds on no tile."""
    given = excluded_names(exclude)
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention) and name]
    return (*given, *attention)


def _check(model: object, batches: object, noise: object, functions: dict[str, object], on_epoch: object) -> None:
    if not isinstance(model, nn.Module):
        raise NabnError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    analog = next((name for name, module in model.named_modules() if isinstance(module, AnalogLayerBase)), None)
    if analog is not None:
        raise NabnError(f"model must be digital, but its module {analog!r} is analog already; give the original")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NabnError("model has no parameter that requires a gradient: there is nothing to train")
    if isinstance(batches, (str, Tensor)) or not (callable(batches) or isinstance(batches, Iterable)):
        raise NabnError(
            f"batches must be an iterable of labelled batches or a function of the epoch, got {type(batches).__name__}"
        )
    if not isinstance(noise, TrainingNoise):
        raise NabnError(f"noise must be a TrainingNoise (matched_noise gives one for a chip), got {noise!r}")
    for name, function in functions.items():
        if not callable(function):
            raise NabnError(f"{name} must be callable, got {function!r}")
    if on_epoch is not None and not callable(on_epoch):
        raise NabnError(f"on_epoch must be callable or None, got {on_epoch!r}")
