"""A classifier on a folder of images: its weights out of a file, its input tried, its workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aihwkit_nabn.data.image_folder import FolderData, choose
from aihwkit_nabn.data.state_dicts import find_weights
from aihwkit_nabn.data.weights import fill_model, read_checkpoint
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import AUGMENTED
from aihwkit_nabn.extension import place_of
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.workloads._base import LoadSettings, Workload
from aihwkit_nabn.workloads._classifier import Classifier
from aihwkit_nabn.workloads._images import FileImages, MemoryImages, digits_as

RANDOM = "random"
_TOP5_CLASSES = 10
_BATCH, _WORKERS = 32, 2


class Inputs(Protocol):
    """How image files become a classifier's input, as `_image_input.ImageInput` has it."""

    @property
    def size(self) -> int:
        """Edge of the input, in pixels."""
        ...

    @property
    def channels(self) -> int:
        """Of the input."""
        ...

    @property
    def test(self) -> Callable[[Any], Tensor]:
        """From a PIL image to the input, as for testing."""
        ...

    @property
    def training(self) -> Callable[[Any], Tensor]:
        """The same, augmented at random."""
        ...

    @property
    def normalise(self) -> Callable[[Tensor], Tensor]:
        """From images of the size ``[N, C, H, W]`` in [0, 1] to the input."""
        ...


def folder_workload(
    model: nn.Module,
    folder: FolderData,
    images: Inputs,
    settings: LoadSettings,
    *,
    title: str,
    data: str,
    device: torch.device,
    outputs: int | None = None,
    notes: Sequence[str] = (),
    setup: Mapping[str, Any] | None = None,
) -> Workload:
    """Return the workload of a classifier on a folder of images.

    Calibration images come from ``train/``, once through the test pipeline (resize, crop the centre, normalise) and
    once through the usual training augmentation (crop at random, flip); accuracy is measured on ``val/``. The other
    data set is the digits, enlarged.

    Args:
        model: The classifier, with its weights.
        folder: Its images.
        images: How they become its input.
        settings: How much of the data.
        title: The network and its weights, for the user.
        data: Where the images are, for the user.
        device: Where to compute.
        outputs: How many classes the model tells apart; None: as many as there are class folders.
        notes: More lines for the user.
        setup: As `Workload.facts` has it.

    Raises:
        NabnError: the model does not take such images, or does not give one score per class.
    """
    model = model.eval().to(device)
    outputs = len(folder.classes) if outputs is None else outputs
    _try_input(model, title.partition(" (")[0], images, outputs, data, device)
    workers = _WORKERS if settings.loader_workers is None else settings.loader_workers
    train, val = (
        FileImages(folder=part, test=images.test, training=images.training, workers=workers)
        for part in (folder.train, folder.val)
    )
    more = f" of the network's {outputs}" if outputs != len(folder.classes) else ""
    tested = min(settings.test_images or len(folder.val), len(folder.val))

    def training_batches(epoch: int, seed: int) -> Iterable[Any]:
        order = choose(len(folder.train), None, derive_seed(seed, "training order", epoch))
        augmented = derive_seed(seed, "training", epoch)
        return train.labelled(order, settings.batch_size or _BATCH, images=AUGMENTED, seed=augmented)

    def digits() -> MemoryImages:
        enlarged = digits_as(images.channels, images.size)
        return MemoryImages(data=enlarged, normalise=images.normalise, augment=lambda images, seed: images)

    return Classifier(
        model=model,
        train=train,
        test=val,
        other=digits,
        other_name="handwritten digits",
        settings=settings,
        batch_size=(_BATCH, settings.batch_size or _BATCH),
        training_batches=training_batches,
        top5=outputs >= _TOP5_CLASSES,
        device=device,
        description=(
            f"{title}, {len(folder.classes)} classes{more}, images of {images.size} x {images.size} pixels",
            f"accuracy on {tested} of the {len(folder.val)} images in {data}/val, calibration with some of the "
            f"{len(folder.train)} in {data}/train, without their labels",
            *notes,
        ),
        setup=dict(setup or {}),
    ).workload()


def take_weights(model: nn.Module, checkpoint: str, classes: int, data: str, *, take: str | None) -> list[str]:
    """Load a file's weights into a classifier for the classes of its images; return lines on what was taken.

    Args:
        model: The classifier.
        checkpoint: The file.
        classes: How many its images have.
        data: Where they are, for messages.
        take: Which of several weights, see `find_weights`.

    Raises:
        NabnError: the file cannot be read, or its weights are another network's, or for another number of classes.
    """
    source = f"weights {checkpoint}"
    own = model.state_dict()
    found = find_weights(read_checkpoint(checkpoint), set(own), source, take=take)
    counts = {_classes_of(found.state[name], own[name], classes) for name in own if _differ(found.state, own, name)}
    if len(counts) == 1 and None not in counts:
        raise wrong_classes(source, counts.pop(), classes, data)
    fill_model(model, found.state, source)
    return found.notes(source)


def origin_of(checkpoint: str) -> str:
    """Return where weights are from, for the user."""
    return "random weights" if checkpoint == RANDOM else checkpoint


def wrong_classes(source: str, found: int | None, classes: int, data: str) -> NabnError:
    """Return the error of weights that tell another number of classes apart than the images have."""
    return NabnError(
        f"{source} tell {found} classes apart, but {data} has {classes} class folders; "
        f"the folders must be the classes the model was trained on"
    )


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


def _differ(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    return name in state and state[name].shape != own[name].shape


def _classes_of(tensor: Tensor, own: Tensor, classes: int) -> int | None:
    """Return the classes of a tensor that differs from the model's in nothing else; None: it differs in more."""
    alike = tensor.ndim == own.ndim > 0 and own.shape[0] == classes and tensor.shape[1:] == own.shape[1:]
    return tensor.shape[0] if alike else None


def _try_input(model: nn.Module, name: str, images: Inputs, classes: int, data: str, device: torch.device) -> None:
    size = images.size
    try:
        with torch.inference_mode():
            scores = model(torch.zeros(1, images.channels, size, size, device=device))
    except Exception as error:  # each model has its own way of refusing a size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise NabnError(
            f"{name} cannot take images of {size} x {size} pixels in {images.channels} channels: "
            f"{reason}{place_of(error)}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (1, classes):
        shape = f"a tensor {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise NabnError(
            f"{name} must give scores (1, {classes}) for one image, as {data} has {classes} class folders, got {shape}"
        )
