"""Torchvision's detectors: building them, reading their weights, and which label stands for which category."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model, mobilenet_v3_large
from torchvision.models.detection import _utils, ssdlite
from torchvision.ops import FrozenBatchNorm2d

from aihwkit_nabn.data.weights import fill_model
from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.seeding import derive_seed, private_rng
from aihwkit_nabn.workloads._folder import RANDOM
from aihwkit_nabn.workloads._torchvision_files import ReadWeights, read_weights

# These give every class a sigmoid of its own; in the others' softmax the background is the class 0.
_WITHOUT_BACKGROUND = ("retinanet", "fcos")
# Trained with BatchNorm that adds nothing to the variance, which no tensor in the file says.
_WITHOUT_EPS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


@dataclass(frozen=True)
class LoadedDetector:
    """A detector in eval mode.

    Attributes:
        model: The network.
        label_of: Its label of each category id.
        notes: Lines on its weights.
    """

    model: Any
    label_of: Mapping[int, int]
    notes: list[str]


def load_detector(
    name: str, checkpoint: str, categories: Mapping[int, str], data: str, *, take: str | None, seed: int
) -> LoadedDetector:
    """Return a detector with the weights of a file, for the categories of some annotations.

    Args:
        name: torchvision's.
        checkpoint: The file, or ``"random"``.
        categories: Names by id.
        data: Where they are from, for messages.
        take: Which of several weights.
        seed: Of random weights.

    Raises:
        NabnError: the weights cannot be read, are another network's, or are for another number of classes.
    """
    if checkpoint == RANDOM:
        labels = {number: label for label, number in enumerate(categories, start=1)}
        return LoadedDetector(build_detector(name, len(categories) + 1, seed), labels, [])
    build: Callable[[int], nn.Module] = functools.partial(_build, name)
    read = read_weights(name, checkpoint, build, take=take, rename=_todays_names(name))
    if name.startswith("ssdlite") and _has_full_tail(read.state):
        build = _build_full_tail
    labels = labels_of(name, categories, read, data)
    model = build(read.outputs)
    frozen = _freeze(model, read, name in _WITHOUT_EPS)
    fill_model(model, read.state, read.source)
    notes = list(read.notes)
    if frozen and read.published is None:
        notes.append(
            f"{read.source}: {frozen} frozen BatchNorm layers, taken with torchvision's eps of 1e-05; in networks that "
            "were fine-tuned from its COCO weights it was 0"
        )
    return LoadedDetector(model.eval(), labels, notes)


def build_detector(name: str, classes: int = 91, seed: int = 0) -> nn.Module:
    """Return a detector with random weights, in eval mode.

    Args:
        name: torchvision's.
        classes: How many, with the background; COCO's by default.
        seed: Of the weights.
    """
    with private_rng(derive_seed(seed, "weights"), torch_only=False):
        return _build(name, classes).eval()


def _build(name: str, classes: int) -> nn.Module:
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return model


def _build_full_tail(classes: int) -> nn.Module:
    """Return SSDLite on the backbone that trainings from ImageNet weights take: its last blocks have all channels."""
    model: Any = _build("ssdlite320_mobilenet_v3_large", classes)
    norm = functools.partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    trunk = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=False)
    model.backbone = ssdlite._mobilenet_extractor(trunk, 6, norm)
    channels = _utils.retrieve_out_channels(model.backbone, (320, 320))
    anchors = model.anchor_generator.num_anchors_per_location()
    model.head = ssdlite.SSDLiteHead(channels, anchors, classes, norm)
    return model


def _has_full_tail(state: Mapping[str, Tensor]) -> bool:
    last = state.get("backbone.extra.0.0.0.weight")
    return last is not None and last.shape[1] == 960


def _freeze(model: nn.Module, read: ReadWeights, without_eps: bool) -> int:
    """Make BatchNorm layers frozen ones where the weights are of such, which count no batches; return how many.

    Args:
        model: The network.
        read: The weights.
        without_eps: Whether torchvision's own were trained with nothing added to the variance.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.BatchNorm2d
        and f"{name}.weight" in read.state
        and f"{name}.num_batches_tracked" not in read.state
    }
    bare = without_eps and read.published is not None
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, FrozenBatchNorm2d(module.num_features, 0.0 if bare else module.eps))
    return len(found)


def set_size(model: Any, size: int) -> None:
    """Let a detector resize images to another size: their shorter side, or both sides for SSD.

    Raises:
        NabnError: the size is no integer >= 1.
    """
    check_count("image_size", size, minimum=1)
    transform = model.transform
    transform.max_size = round(transform.max_size * size / transform.min_size[-1])
    transform.min_size = (size,)
    if transform.fixed_size is not None:
        transform.fixed_size = (size, size)


def _todays_names(name: str) -> Callable[[str], str]:
    """Return a function that gives a tensor of an older file today's name, as torchvision's own loading does."""
    changes = [
        (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
        (r"(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2"),
    ]

    def rename(key: str) -> str:
        for old, new in changes:
            key = re.sub(old, new, key)
        key = re.sub(r"mask_fcn(\d)\.", lambda found: f"{int(found[1]) - 1}.0.", key)
        if name == "retinanet_resnet50_fpn":  # FCOS and the second version have such names for other tensors
            old = r"(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$"
            key = re.sub(old, lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}", key)
        return key

    return rename


def labels_of(name: str, categories: Mapping[int, str], read: ReadWeights, data: str) -> dict[int, int]:
    """Return the network's label of each category id.

    torchvision's own weights go by the names of the categories. Others were trained with the ids as labels, or with
    labels in the order of the ids: how many classes the network tells apart decides.

    Args:
        name: torchvision's.
        categories: Names by id, sorted by id.
        read: The weights.
        data: Where the categories are from, for messages.

    Raises:
        NabnError: the network has another number of classes, or torchvision's weights lack a category.
    """
    ids, outputs = list(categories), read.outputs
    if read.categories is not None:
        known = {category: label for label, category in enumerate(read.categories)}
        lacking = [category for category in categories.values() if category not in known]
        if lacking:
            raise NabnError(
                f"{read.source} are torchvision's own, which find COCO's categories; {data} has {lacking[0]!r}, which "
                f"is none of them ({len(lacking)} of {len(ids)})"
            )
        return {number: known[category] for number, category in categories.items()}
    if outputs == ids[-1] + 1 and ids[0] >= 1:
        return {number: number for number in ids}
    if outputs == len(ids) + 1:
        return {number: label for label, number in enumerate(ids, start=1)}
    alone = name.startswith(_WITHOUT_BACKGROUND)
    if alone and outputs == len(ids):
        return {number: label for label, number in enumerate(ids)}
    allowed = [f"{len(ids) + 1} (the background and its categories)"]
    allowed += [f"{ids[-1] + 1} (its category ids as labels)"] if ids[0] >= 1 and ids[-1] != len(ids) else []
    allowed += [f"{len(ids)} (its categories alone)"] if alone else []
    raise NabnError(
        f"{read.source} tell {outputs} classes apart, but {data} has {len(ids)} categories, for which they must be "
        f"{' or '.join(allowed)}"
    )
