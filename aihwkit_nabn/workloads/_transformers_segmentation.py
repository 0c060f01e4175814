"""A segmenter of transformers' on images with masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.segmentation import IGNORED, NAMES, MaskFolder, open_masks
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.workloads._base import LoadSettings, Workload
from aihwkit_nabn.workloads._image_network import Size, check_forward, choose_tested
from aihwkit_nabn.workloads._labels import is_nameless, labels_of_names
from aihwkit_nabn.workloads._segmenter import Segmenter
from aihwkit_nabn.workloads._transformers_files import PROCESSOR, Architecture, digest_of, load_network
from aihwkit_nabn.workloads._transformers_images import ProcessorPipeline, read_processor

_POST = "post_process_semantic_segmentation"


def load_segmenter(
    architecture: Architecture,
    settings: LoadSettings,
    *,
    data: str,
    device: torch.device,
    per_class: bool = False,
    ignore_index: int = IGNORED,
) -> Workload:
    """Return a segmenter with images and masks; arguments as for `load_transformers`.

    Where the image processor reduces labels (``do_reduce_labels``, ADE20K's networks), the masks' 0 counts for nothing
    and 1 is the first class.

    Raises:
        NabnError: the folder's parts or the data cannot be read, or do not fit each other.
    """
    folder = open_masks(data)
    names = _names_of(folder, architecture, data)
    processor = read_processor(architecture, makes=_POST)
    notes = []
    if getattr(processor.own, "do_reduce_labels", None):
        folder = replace(folder, train=replace(folder.train, from_one=True), val=replace(folder.val, from_one=True))
        notes.append(f"masks count classes from 1, and 0 counts for nothing: do_reduce_labels in {processor.place}")
    numbers = choose_tested(len(folder.val.images), settings)
    picture = FileList.loader(str(folder.val.images[numbers[0]]))
    image = processor(picture)
    model, told = load_network(architecture)
    segmenter = TransformersSegmenter(
        name=architecture.name,
        origin=str(architecture.folder),
        model=model.to(device),
        numbers=numbers,
        settings=settings,
        device=device,
        per_class=per_class,
        notes=(*told, *notes),
        names=names,
        folder=folder,
        pipeline=ProcessorPipeline(size=min(image.shape[-2:]), ignored=ignore_index, processor=processor),
        digest=digest_of(architecture),
    )
    segmenter.check_masks()
    check_forward(model, architecture.name, image[None].to(device))
    return segmenter.workload()


def _names_of(folder: MaskFolder, architecture: Architecture, data: str) -> list[str]:
    """Return the names of a network's classes; the data must not have others, or in another order."""
    labels = architecture.labels
    if folder.names is None:
        return list(labels.values())
    found = labels_of_names(folder.names, labels, f"names in {data}/{NAMES}", str(architecture.folder))
    if found != list(labels):
        place = next((i for i, label in enumerate(found) if i != label), len(found))
        named = f"{folder.names[place]!r}" if place < len(found) else "missing"
        raise NabnError(
            f"the masks' values are labels of {architecture.folder}, so {data}/{NAMES} must name them in order: class "
            f"{place} is {labels[place]!r}, got {named}"
        )
    return folder.names if is_nameless(labels) else list(labels.values())


@dataclass(frozen=True, kw_only=True)
class TransformersSegmenter(Segmenter):
    """One of transformers' segmenters.

    Attributes:
        pipeline: With the folder's image processor.
        digest: Tells the processor from others.
    """

    pipeline: ProcessorPipeline
    digest: str

    @property
    def setup(self) -> dict[str, Any]:
        """As `Segmenter` has it."""
        return {**super().setup, "images": f"{PROCESSOR} {self.digest}"}

    def found(self, model: nn.Module, images: Tensor, size: Size) -> Iterable[Tensor]:
        """As `Segmenter` has it, one image after the other."""
        make = getattr(self.pipeline.processor.own, _POST)
        for scores in model(images):
            yield make(SimpleNamespace(logits=scores[None]), target_sizes=[size[::-1]])[0]

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the cross entropy of all pixels that count."""
        images, masks = (part.to(self.device) for part in batch)
        scores = F.interpolate(model(images), size=masks.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(scores, masks, ignore_index=self.pipeline.ignored)
