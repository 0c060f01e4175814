"""``torchvision:NAME``: any of torchvision's classifiers on a folder of images."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import WeightsEnum

from aihwkit_nabn.data.classification import batch_accuracy
from aihwkit_nabn.data.image_folder import FolderData, ImageBatches, TransformedImages, choose, open_image_folder
from aihwkit_nabn.errors import NabnError, UnknownNameError, check_count
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.targets._base import TARGETS, TargetOptions, Task
from aihwkit_nabn.targets._state_dicts import find_weights
from aihwkit_nabn.targets._weights import count_classes, fill_model, read_checkpoint, tensor_names

_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception v3, used in training only
_TOP5_CLASSES = 10


@TARGETS.register("torchvision")
def load_torchvision(name: str, options: TargetOptions) -> Task:
    """Return a torchvision classifier with the images of a folder.

    Calibration images come from ``train/``, once through the test pipeline (resize, crop the centre, normalise) and
    once through the usual training augmentation (crop at random, flip); accuracy is measured on ``val/``. The sizes and
    the normalisation are those that torchvision gives with the model's own ImageNet weights.

    Raises:
        UnknownNameError: torchvision has no such classifier.
        NabnError: the weights or the images cannot be read, or do not fit each other or the model.
    """
    _check_name(name)
    check_seed("seed", options.seed)
    device = check_device(options.device)
    folder = open_image_folder(options.data)
    model, own, notes = load_model(name, options, len(folder.classes))
    model = model.to(device)
    test, training, size = pipelines(name, options.image_size or getattr(model, "image_size", None), own)
    test_images = choose(len(folder.val), options.limit, derive_seed(options.seed, "test images"))
    chosen = choose(len(folder.train), options.max_samples, derive_seed(options.seed, "calibration images"))

    def batches(indices: list[int], part: str, transform: Callable[[Any], Tensor]) -> ImageBatches:
        images = TransformedImages(getattr(folder, part), indices, transform, options.seed)
        return ImageBatches(images, batch_size=options.batch_size, workers=options.workers, labelled=part == "val")

    measured = batches(test_images, "val", test)
    _check_forward(model, name, size, device)

    def eval_fn(candidate: nn.Module) -> dict[str, float]:
        def moved() -> Iterator[tuple[Tensor, Tensor]]:
            for images, labels in measured:
                yield images.to(device), labels.to(device)

        return batch_accuracy(candidate, moved(), top5=len(folder.classes) >= _TOP5_CLASSES)

    def training_batches(epoch: int) -> ImageBatches:
        order = choose(len(folder.train), None, derive_seed(options.seed, "training order", epoch))
        images = TransformedImages(folder.train, order, training, derive_seed(options.seed, "training", epoch))
        return ImageBatches(images, batch_size=options.batch_size, workers=options.workers, labelled=True)

    return Task(
        model=model,
        eval_fn=eval_fn,
        calibration_batches={"plain": batches(chosen, "train", test), "augmented": batches(chosen, "train", training)},
        forward_fn=lambda candidate, images: candidate(images.to(device)),
        training_batches=training_batches,
        description=[*_describe(name, options, folder, size, len(test_images), len(chosen)), *notes],
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
        raise UnknownNameError("torchvision classifier", name, known)


def published_weights(name: str, path: str) -> WeightsEnum | None:
    """Return which of torchvision's own weights for a classifier a file is, None if it is none of them.

    Their addresses hold the beginning of the file's SHA-256, so a renamed file is known too.
    """
    entries = {
        found[1]: entry
        for entry in torchvision.models.get_model_weights(name)
        if (found := re.search(r"-([0-9a-f]{8,})\.pth$", entry.url))
    }
    if not Path(path).is_file():
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return next((entry for start, entry in entries.items() if digest.hexdigest().startswith(start)), None)


def load_model(name: str, options: TargetOptions, classes: int) -> tuple[nn.Module, WeightsEnum | None, list[str]]:
    """Return a classifier in eval mode, which of torchvision's own weights it has, and lines on what was taken.

    Raises:
        NabnError: the weights cannot be read, are another model's, or are for another number of classes.
    """
    if options.weights == "random":
        return build_random(name, classes, options.seed), None, []
    own = published_weights(name, options.weights)
    source = f"weights {options.weights}"
    found = find_weights(
        read_checkpoint(options.weights),
        tensor_names(lambda count: _build(name, count)),
        source,
        take=options.take,
        # torchvision's DenseNet files from before 2018 have a dot in these names.
        rename=lambda key: re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key),
    )
    state = found.state
    auxiliary = any(key.startswith(_AUXILIARY) for key in state)
    extra = _extra_options(name, state, auxiliary, own)
    counted = count_classes(state, lambda count: _build(name, count, **extra), source)
    if counted != classes:
        raise NabnError(
            f"{source} tell {counted} classes apart, but {options.data} has {classes} class folders; "
            f"the folders must be the classes the model was trained on"
        )
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


def pipelines(
    name: str, image_size: int | None, weights: WeightsEnum | None = None
) -> tuple[transforms.Compose, transforms.Compose, int]:
    """Return the test pipeline, the training pipeline and the edge of the images they give.

    Args:
        name: torchvision's.
        image_size: Another edge than that of the weights.
        weights: Which of torchvision's; None: its first ones for ImageNet.

    Raises:
        NabnError: the size is no integer >= 1.
    """
    members = {entry.name: entry for entry in torchvision.models.get_model_weights(name)}
    own = (weights or members.get("IMAGENET1K_V1", next(iter(members.values())))).transforms()
    size, resize = own.crop_size[0], own.resize_size[0]
    if image_size is not None:
        check_count("image_size", image_size, minimum=1)
        size, resize = image_size, round(image_size * resize / size)
    to_tensor = [transforms.ToTensor(), transforms.Normalize(own.mean, own.std)]
    test = [transforms.Resize(resize, own.interpolation), transforms.CenterCrop(size), *to_tensor]
    training = [
        transforms.RandomResizedCrop(size, interpolation=own.interpolation),
        transforms.RandomHorizontalFlip(),
        *to_tensor,
    ]
    return transforms.Compose(test), transforms.Compose(training), size


def check_device(device: str) -> torch.device:
    """Return a device that torch can use.

    Raises:
        NabnError: there is no such device, or torch was built without it.
    """
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:  # the latter: torch built without CUDA
        reason = (str(error).splitlines() or [""])[0]
        raise NabnError(
            f"device must be one that torch can use, such as cpu or cuda, got {device!r}: {reason}"
        ) from error
    return wanted


def _check_forward(model: nn.Module, name: str, size: int, device: torch.device) -> None:
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size, device=device))
    except Exception as error:  # each model has its own way of refusing a size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NabnError(f"{name} cannot take images of {size} x {size} pixels: {reason}") from error


def _describe(
    name: str, options: TargetOptions, folder: FolderData, size: int, n_test: int, n_calibration: int
) -> list[str]:
    origin = "random weights" if options.weights == "random" else options.weights
    return [
        f"{name} ({origin}), {len(folder.classes)} classes, images of {size} x {size} pixels",
        f"accuracy on {n_test} of the {len(folder.val)} images in {options.data}/val, "
        f"calibration with {n_calibration} of the {len(folder.train)} in {options.data}/train, without their labels",
    ]
