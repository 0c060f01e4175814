"""What a kind of target is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from aihwkit_nabn.registry import Registry


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What the user said about the model and its data.

    Attributes:
        weights: Checkpoint file, or ``"random"``.
        data: Folder of the data.
        batch_size: Images per batch.
        max_samples: Number of calibration images.
        limit: Number of test images; None: all.
        image_size: Edge of the network's input in pixels; None: as the model was made for.
        workers: Processes that read images.
        seed: Fixes which images are taken and how they are augmented.
        device: Where to compute: ``"cpu"``, ``"cuda"``.
        take: Which weights of a file that holds several: ``"model"`` as trained, ``"ema"`` averaged, or their place in
            the file, as ``"state_dict.student"``; None: as trained.
    """

    weights: str
    data: Path
    batch_size: int = 32
    max_samples: int = 256
    limit: int | None = None
    image_size: int | None = None
    workers: int = 0
    seed: int = 0
    device: str = "cpu"
    take: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trained model and how to measure it.

    Attributes:
        model: The digital model, in eval mode, on its device.
        eval_fn: Called as ``eval_fn(model)``; returns metric names to numbers, higher being better.
        calibration_batches: The calibration sets by name: ``"plain"`` through the test pipeline, ``"augmented"``
            through the training pipeline.
        forward_fn: Called as ``forward_fn(model, batch)`` when calibrating.
        training_batches: Called with the number of the epoch; returns all training images, augmented anew, in a new
            order, as batches ``(images, labels)``. None where there are no labels.
        description: Lines that say what is tested, for the user.
    """

    model: nn.Module
    eval_fn: Callable[[nn.Module], dict[str, float]]
    calibration_batches: dict[str, Iterable[Any]]
    forward_fn: Callable[[nn.Module, Any], Any]
    training_batches: Callable[[int], Iterable[Any]] | None = None
    description: list[str] = field(default_factory=list)


TARGETS: Registry[Callable[[str, TargetOptions], Task]] = Registry("kind of target")
