"""``timm:NAME``: any of timm's classifiers on a folder of images."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import nn

from aihwkit_nabn.data.image_folder import open_image_folder
from aihwkit_nabn.errors import NabnError, UnknownNameError, missing_extra, suggestion
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.workloads._base import CHECKPOINT, WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_arguments, check_text
from aihwkit_nabn.workloads._folder import RANDOM, check_device, folder_workload, origin_of, take_weights
from aihwkit_nabn.workloads._image_input import IMAGE_OPTIONS, ImageInput

_OURS = {"pretrained": "WEIGHTS is a local file; nothing is downloaded", "checkpoint_path": "that is WEIGHTS"}


def load_timm(
    name: str,
    settings: LoadSettings,
    *,
    checkpoint: str,
    data: str,
    take: str | None = None,
    device: str = "cpu",
    model_args: Mapping[str, Any] | None = None,
    **images: Any,
) -> Workload:
    """Return one of timm's classifiers with the images of a folder; nothing is downloaded.

    Images are resized, cropped and normalised as the model's data configuration says, that of the tag where the name
    has one (``resnet50.a1_in1k``).

    Args:
        name: timm's, with or without a tag.
        settings: How much of the data.
        checkpoint: File with the weights, or ``"random"``.
        data: Folder with ``train/CLASS/images`` and ``val/CLASS/images``.
        take: Which weights of a file that holds several, as for torchvision's models.
        device: Where to compute.
        model_args: What else ``timm.create_model`` takes.
        images: What is to differ from the data configuration, see `ImageInput.changed`.

    Raises:
        UnknownNameError: timm has no such model, or the model no such tag.
        MissingDependencyError: timm is not installed.
        NabnError: weights, images and model do not fit each other.
    """
    check_seed("seed", settings.seed)
    where = check_device(device)
    _check_name(name)
    folder = open_image_folder(data)
    given = {**_input_size(name, images.get("image_size")), **(model_args or {})}
    model = build_timm(name, model_args={"num_classes": len(folder.classes), **given}, seed=settings.seed)
    carried = ImageInput.carried_by(model, images.get("image_size"))
    images_in = (carried or ImageInput()).changed(**images)
    notes = [] if checkpoint == RANDOM else take_weights(model, checkpoint, len(folder.classes), data, take=take)
    return folder_workload(
        model,
        folder,
        images_in,
        settings,
        title=f"{name} ({origin_of(checkpoint)})",
        data=data,
        device=where,
        notes=[*notes, str(images_in)],
        setup={"model_args": {key: repr(value) for key, value in given.items()}, "images": str(images_in)},
    )


def build_timm(name: str, *, model_args: Mapping[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """Return one of timm's models with random weights, in eval mode.

    Raises:
        UnknownNameError: timm has no such model, or the model no such tag.
        MissingDependencyError: timm is not installed.
        NabnError: the model does not take an argument.
    """
    _check_name(name)
    import timm

    for argument, reason in _OURS.items():
        if argument in (model_args or {}):
            raise NabnError(f"model_args of timm:{name} must not hold {argument}: {reason}")
    with private_rng(derive_seed(seed, "weights"), torch_only=False):
        try:
            model: nn.Module = timm.create_model(name, pretrained=False, **(model_args or {}))
        except Exception as error:  # each model has its own way of refusing an argument
            raise NabnError(f"timm cannot build {name}: {type(error).__name__}: {error}") from error
    return model.eval()


def _check_name(name: str) -> None:
    if importlib.util.find_spec("timm") is None:
        raise missing_extra("timm", "timm")
    import timm

    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        known = timm.list_models()
        hint = f"{suggestion(model, known)}; timm.list_models() names all {len(known)}"
        raise UnknownNameError("timm model", model, known, hint)
    tags = [known.partition(".")[2] for known in timm.list_models(model, pretrained=True) if "." in known]
    if tag and tag not in tags:
        raise UnknownNameError(f"tag of timm's {model}", tag, tags)


def _input_size(name: str, image_size: int | None) -> dict[str, Any]:
    """Return the argument that makes a model for another size, for those that are built for one."""
    import timm

    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size
    return {"img_size": image_size} if fixed and image_size is not None else {}


WORKLOADS.register("timm")(
    WorkloadKind(
        load=load_timm,
        options={
            CHECKPOINT: check_text,
            "data": check_text,
            "take": check_text,
            "device": check_text,
            "model_args": check_arguments,
            **IMAGE_OPTIONS,
        },
        required=(CHECKPOINT, "data"),
        named=True,
        build=build_timm,
    )
)
