"""Torchvision's segmenters: building them and reading their weights."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torchvision.models import get_model

from aihwkit_nabn.data.segmentation import NAMES, MaskFolder, largest_index
from aihwkit_nabn.data.weights import fill_model
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import derive_seed, private_rng
from aihwkit_nabn.workloads._folder import RANDOM
from aihwkit_nabn.workloads._torchvision_files import read_weights

_AUXILIARY = "aux_classifier"  # a head that is used in training only


def build_segmenter(name: str, classes: int = 21, seed: int = 0) -> nn.Module:
    """Return a segmenter with random weights, in eval mode, without the head that only training uses.

    Args:
        name: torchvision's.
        classes: How many; VOC's by default.
        seed: Of the weights.
    """
    with private_rng(derive_seed(seed, "weights"), torch_only=False):
        return _build(name, classes).eval()


def _build(name: str, classes: int, **extra: Any) -> nn.Module:
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=classes, **extra)
    return model


def load_segmenter(
    name: str, checkpoint: str, folder: MaskFolder, data: str, take: str | None, seed: int, ignored: int
) -> tuple[nn.Module, list[str], list[str]]:
    """Return a segmenter in eval mode, the names of its classes, and lines on its weights.

    Args:
        name: torchvision's.
        checkpoint: The file, or ``"random"``.
        folder: The data.
        data: Where it is, for messages.
        take: Which of several weights.
        seed: Of random weights.
        ignored: Value of mask pixels that count for nothing.

    Raises:
        NabnError: the weights cannot be read, are another network's, or are for another number of classes.
    """
    names = folder.names
    if checkpoint == RANDOM:
        classes = largest_index(folder.val, ignored) + 1 if names is None else len(names)
        return build_segmenter(name, classes, seed), names or _numbered(classes), []
    read = read_weights(name, checkpoint, functools.partial(_build, name), take=take)
    if names is not None and len(names) != read.outputs:
        raise NabnError(f"{read.source} tell {read.outputs} classes apart, but {data}/{NAMES} has {len(names)} names")
    auxiliary = any(key.startswith(_AUXILIARY) for key in read.state)
    model: Any = _build(name, read.outputs, **({"aux_loss": True} if auxiliary else {}))
    fill_model(model, read.state, read.source)
    if getattr(model, _AUXILIARY, None) is not None:
        setattr(model, _AUXILIARY, None)
    return model.eval(), names or read.categories or _numbered(read.outputs), list(read.notes)


def _numbered(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]
