"""``torchvision:NAME`` of a classifier, on a folder of images."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from aihwkit_nabn.data.image_folder import open_image_folder
from aihwkit_nabn.data.state_dicts import find_weights
from aihwkit_nabn.data.weights import count_classes, fill_model, read_checkpoint, tensor_names
from aihwkit_nabn.errors import UnknownNameError
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.workloads._base import WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_positive, check_text
from aihwkit_nabn.workloads._folder import RANDOM, check_device, folder_workload, origin_of, wrong_classes
from aihwkit_nabn.workloads._image_input import ImageInput

_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception v3, used in training only


def load_torchvision(
    name: str,
    settings: LoadSettings,
    *,
    checkpoint: str,
    data: str,
    take: str | None = None,
    image_size: int | None = None,
    device: str = "cpu",
) -> Workload:
    """Return a torchvision classifier with the images of a folder.

    Sizes and normalisation are those that torchvision gives with the model's own ImageNet weights.

    Args:
        name: torchvision's.
        settings: How much of the data.
        checkpoint: File with the weights, or ``"random"``.
        data: Folder with ``train/CLASS/images`` and ``val/CLASS/images``.
        take: Which weights of a file that holds several: ``"model"`` as trained, ``"ema"`` averaged, or their place in
            the file, as ``"state_dict.student"``; None: as trained.
        image_size: Edge of the network's input in pixels; None: as the model was made for.
        device: Where to compute: ``"cpu"``, ``"cuda"``.

    Raises:
        UnknownNameError: torchvision has no such classifier.
        NabnError: the weights or the images cannot be read, or do not fit each other or the model.
    """
    _check_name(name)
    check_seed("seed", settings.seed)
    where = check_device(device)
    folder = open_image_folder(data)
    model, own, notes = load_model(name, checkpoint, len(folder.classes), data, take=take, seed=settings.seed)
    return folder_workload(
        model,
        folder,
        image_input(name, own).changed(image_size=image_size or getattr(model, "image_size", None)),
        settings,
        title=f"{name} ({origin_of(checkpoint)})",
        data=data,
        device=where,
        notes=notes,
    )


def build_random(name: str, classes: int = 1000, seed: int = 0) -> nn.Module:
    """Return a classifier with random weights, in eval mode, without the heads that only training uses.

    Raises:
        UnknownNameError: torchvision has no such classifier.
    """
    _check_name(name)
    with private_rng(derive_seed(seed, "weights"), torch_only=False):
        return _without_auxiliary(_build(name, classes)).eval()


def _check_name(name: str) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = "; of torchvision's detectors, those of key points are not measured" if "keypoint" in name else ""
        raise UnknownNameError("torchvision network", name, [*known, *KIND.of_names], hint)


def published_weights(name: str, path: str) -> WeightsEnum | None:
    """Return which of torchvision's own weights for a classifier a file is, None if it is none of them.

    Their addresses hold the beginning of the file's SHA-256, so a renamed file is known too.
    """
    return _published(torchvision.models.get_model_weights(name), path)


def _published(entries: Iterable[WeightsEnum], path: str) -> WeightsEnum | None:
    starts = [(found[1], entry) for entry in entries if (found := re.search(r"-([0-9a-f]{8,})\.pth$", entry.url))]
    if not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return next((entry for start, entry in starts if digest.hexdigest().startswith(start)), None)


def load_model(
    name: str, checkpoint: str, classes: int, data: str, *, take: str | None, seed: int
) -> tuple[nn.Module, WeightsEnum | None, list[str]]:
    """Return a classifier in eval mode, which of torchvision's own weights it has, and lines on what was taken.

    Args:
        name: torchvision's.
        checkpoint: File with the weights, or ``"random"``.
        classes: How many its images have.
        data: Where they are, for messages.
        take: Which of several weights.
        seed: Of random weights.

    Raises:
        NabnError: the weights cannot be read, are another model's, or are for another number of classes.
    """
    if checkpoint == RANDOM:
        return build_random(name, classes, seed), None, []
    own = published_weights(name, checkpoint)
    source = f"weights {checkpoint}"
    found = find_weights(
        read_checkpoint(checkpoint),
        tensor_names(lambda count: _build(name, count)),
        source,
        take=take,
        # torchvision's DenseNet files from before 2018 have a dot in these names.
        rename=lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key),
    )
    state = found.state
    auxiliary = any(key.startswith(_AUXILIARY) for key in state)
    extra = _extra_options(name, state, auxiliary, own)
    counted = count_classes(state, lambda count: _build(name, count, **extra), source)
    if counted != classes:
        raise wrong_classes(source, counted, classes, data)
    model = _build(name, counted, **extra)
    fill_model(model, state, source)
    return _without_auxiliary(model).eval(), own, found.notes(source)


def _extra_options(name: str, state: Mapping[str, Tensor], auxiliary: bool, own: WeightsEnum | None) -> dict[str, Any]:
    """Return the arguments with which torchvision builds a model for given weights, besides the number of classes."""
    if name in _WITH_AUXILIARY:
        # Its own weights are a port from TensorFlow, whose images are scaled otherwise. That is no tensor in the file.
        return {"aux_logits": auxiliary, "transform_input": own is not None}
    if name.startswith("vit_") and "encoder.pos_embedding" in state and "conv_proj.weight" in state:
        patches = round((state["encoder.pos_embedding"].shape[1] - 1) ** 0.5)  # and the class's own
        return {"image_size": patches * state["conv_proj.weight"].shape[-1]}
    return {}


def _build(name: str, classes: int, **extra: Any) -> nn.Module:
    if name in _WITH_AUXILIARY:
        extra = {"aux_logits": False, "init_weights": False} | extra
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about default arguments of torchvision's own
        return torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)


def _without_auxiliary(model: nn.Module) -> nn.Module:
    for head in _AUXILIARY:
        if getattr(model, head, None) is not None:
            setattr(model, head, None)
    return model


def image_input(name: str, weights: WeightsEnum | None = None) -> ImageInput:
    """Return how images become a classifier's input.

    Args:
        name: torchvision's.
        weights: Which of torchvision's; None: its first ones for ImageNet.
    """
    members = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
    return _input_of(weights or members.get("IMAGENET1K_V1", next(iter(members.values()))))


def image_input_of(checkpoint: str) -> ImageInput | None:
    """Return how images become the input of whichever of torchvision's own weights a file is; None: of none."""
    names = torchvision.models.list_models(module=torchvision.models)
    own = _published([entry for name in names for entry in torchvision.models.get_model_weights(name)], checkpoint)
    return None if own is None else _input_of(own)


def _input_of(weights: WeightsEnum) -> ImageInput:
    own = weights.transforms()
    return ImageInput(
        size=own.crop_size[0],
        resize=own.resize_size[0],
        mean=tuple(own.mean),
        std=tuple(own.std),
        interpolation=own.interpolation,
        origin=f"torchvision's, for {weights}",
    )


KIND = WORKLOADS.register("torchvision")(
    WorkloadKind(
        load=load_torchvision,
        options={
            "checkpoint": check_text,
            "data": check_text,
            "take": check_text,
            "image_size": check_positive,
            "device": check_text,
        },
        required=("checkpoint", "data"),
        named=True,
        build=build_random,
    )
)
