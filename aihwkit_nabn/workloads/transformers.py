"""``transformers:FOLDER``: a classifier, detector or segmenter as transformers' ``save_pretrained`` writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from aihwkit_nabn.data.coco import LAYOUT as COCO_LAYOUT
from aihwkit_nabn.data.image_folder import open_image_folder, relabelled
from aihwkit_nabn.data.segmentation import LAYOUT as MASKS_LAYOUT
from aihwkit_nabn.errors import NabnError, check_count, check_flag
from aihwkit_nabn.seeding import check_seed
from aihwkit_nabn.workloads._base import CHECKPOINT, WORKLOADS, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_text
from aihwkit_nabn.workloads._folder import check_device, folder_workload
from aihwkit_nabn.workloads._image_input import IMAGE_OPTIONS
from aihwkit_nabn.workloads._labels import labels_of_names
from aihwkit_nabn.workloads._transformers_detection import load_detector
from aihwkit_nabn.workloads._transformers_files import (
    CLASSIFICATION,
    DETECTION,
    PROCESSOR,
    SEGMENTATION,
    Architecture,
    build_network,
    digest_of,
    load_network,
    read_architecture,
)
from aihwkit_nabn.workloads._transformers_images import ClassifierImages, read_processor
from aihwkit_nabn.workloads._transformers_segmentation import load_segmenter

# Options of some tasks only.
_OF_TASKS = {"per_class": (DETECTION, SEGMENTATION), "ignore_index": (SEGMENTATION,)}


def load_transformers(name: str, settings: LoadSettings, *, data: str, device: str = "cpu", **options: Any) -> Workload:
    """Return a network of transformers' with its data; nothing is downloaded.

    The folder holds the configuration, the weights (safetensors, or a pickle of nothing but tensors) and the image
    processor, which says how images are resized and normalised, and what boxes and classes of pixels are made of the
    network's outputs. Classes of the data go by the names in ``id2label``.

    Args:
        name: The folder.
        settings: How much of the data.
        data: Its folder: ``train/CLASS/images`` and ``val/CLASS/images`` for a classifier, COCO's form for a detector
            (`aihwkit_nabn.data.coco`), images with masks for a segmenter (`aihwkit_nabn.data.segmentation`).
        device: Where to compute.
        options: ``per_class`` of detectors and segmenters, ``ignore_index`` of segmenters, as for torchvision's.

    Raises:
        MissingDependencyError: transformers is not installed.
        NabnError: the folder is not of a network for one of the three tasks, or its parts and the data do not fit each
            other.
    """
    check_seed("seed", settings.seed)
    architecture = read_architecture(name)
    for option in options:
        if architecture.task not in _OF_TASKS[option]:
            raise NabnError(
                f"{option} is for {' and '.join(_OF_TASKS[option])}, but {architecture.name} of {name} is for "
                f"{architecture.task}"
            )
    load: Callable[..., Workload] = {
        CLASSIFICATION: _load_classifier,
        DETECTION: load_detector,
        SEGMENTATION: load_segmenter,
    }[architecture.task]
    return load(architecture, settings, data=data, device=check_device(device), **options)


def _load_classifier(architecture: Architecture, settings: LoadSettings, *, data: str, device: Any) -> Workload:
    folder = open_image_folder(data)
    labels = architecture.labels
    found = labels_of_names(folder.classes, labels, f"class folders of {data}", str(architecture.folder))
    images = ClassifierImages(read_processor(architecture))
    model, notes = load_network(architecture)
    return folder_workload(
        model,
        relabelled(folder, found),
        images,
        settings,
        title=f"{architecture.name} ({architecture.folder})",
        data=data,
        device=device,
        outputs=len(labels),
        notes=[*notes, str(images)],
        setup={"images": f"{PROCESSOR} {digest_of(architecture)}"},
    )


def build_transformers(name: str) -> nn.Module:
    """Return the network of a folder's configuration with random weights, in eval mode.

    Raises:
        NabnError: as for `load_transformers`.
    """
    return build_network(name)


WORKLOADS.register("transformers")(
    WorkloadKind(
        load=load_transformers,
        options={
            "data": check_text,
            "device": check_text,
            "per_class": check_flag,
            "ignore_index": check_count,
        },
        required=("data",),
        named=True,
        build=build_transformers,
        instead={
            CHECKPOINT: "the weights in the folder",
            "take": "the weights in the folder",
            **dict.fromkeys(IMAGE_OPTIONS, f"{PROCESSOR} in the folder"),
        },
        explained={
            "data": ": the folder; for a classifier train/CLASS/images and val/CLASS/images, for a detector COCO's "
            f"form, for a segmenter images with masks ({COCO_LAYOUT}; {MASKS_LAYOUT})"
        },
    )
)
