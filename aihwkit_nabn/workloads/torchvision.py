"""``torchvision:NAME`` of a classifier, on a folder of images."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import WeightsEnum

from aihwkit_nabn.data.image_folder import FolderData, choose, open_image_folder
from aihwkit_nabn.data.state_dicts import find_weights
from aihwkit_nabn.data.weights import count_classes, fill_model, read_checkpoint, tensor_names
from aihwkit_nabn.errors import NabnError, UnknownNameError, check_count
from aihwkit_nabn.evaluation.methods import AUGMENTED
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.workloads._base import WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_positive, check_text
from aihwkit_nabn.workloads._classifier import Classifier
from aihwkit_nabn.workloads._images import FileImages, MemoryImages, digits_as

_WITH_AUXILIARY = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # heads of GoogLeNet and Inception v3, used in training only
_TOP5_CLASSES = 10
_BATCH, _WORKERS = 32, 2


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

    Calibration images come from ``train/``, once through the test pipeline (resize, crop the centre, normalise) and
    once through the usual training augmentation (crop at random, flip); accuracy is measured on ``val/``. The sizes and
    the normalisation are those that torchvision gives with the model's own ImageNet weights. The other data set is the
    digits, enlarged.

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
    model = model.to(where)
    test, training, size = pipelines(name, image_size or getattr(model, "image_size", None), own)
    workers = _WORKERS if settings.loader_workers is None else settings.loader_workers
    train = FileImages(folder=folder.train, test=test, training=training, workers=workers)
    normalise = next(step for step in test.transforms if isinstance(step, transforms.Normalize))
    _check_forward(model, name, size, where)

    def training_batches(epoch: int, seed: int) -> Iterable[Any]:
        order = choose(len(folder.train), None, derive_seed(seed, "training order", epoch))
        augmented = derive_seed(seed, "training", epoch)
        return train.labelled(order, settings.batch_size or _BATCH, images=AUGMENTED, seed=augmented)

    return Classifier(
        model=model,
        train=train,
        test=FileImages(folder=folder.val, test=test, training=training, workers=workers),
        other=lambda: MemoryImages(data=digits_as(3, size), normalise=normalise, augment=lambda images, seed: images),
        other_name="handwritten digits",
        settings=settings,
        batch_size=(_BATCH, settings.batch_size or _BATCH),
        training_batches=training_batches,
        top5=len(folder.classes) >= _TOP5_CLASSES,
        device=where,
        description=(*_describe(name, checkpoint, data, folder, size, settings), *notes),
    ).workload()


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
    if checkpoint == "random":
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
        raise NabnError(
            f"{source} tell {counted} classes apart, but {data} has {classes} class folders; "
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
    name: str, checkpoint: str, data: str, folder: FolderData, size: int, settings: LoadSettings
) -> list[str]:
    origin = "random weights" if checkpoint == "random" else checkpoint
    tested = min(settings.test_images or len(folder.val), len(folder.val))
    return [
        f"{name} ({origin}), {len(folder.classes)} classes, images of {size} x {size} pixels",
        f"accuracy on {tested} of the {len(folder.val)} images in {data}/val, calibration with some of the "
        f"{len(folder.train)} in {data}/train, without their labels",
    ]


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
