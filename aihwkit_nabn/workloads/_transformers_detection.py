"""A detector of transformers' on data in COCO's form."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as pixels

from aihwkit_nabn.data.coco import CocoAnnotations, open_coco
from aihwkit_nabn.data.image_files import FileList, by_size
from aihwkit_nabn.workloads._base import LoadSettings, Workload
from aihwkit_nabn.workloads._detector import Detector, tested_objects
from aihwkit_nabn.workloads._image_network import Size, check_forward
from aihwkit_nabn.workloads._labels import is_nameless, labels_of_names
from aihwkit_nabn.workloads._transformers_files import PROCESSOR, Architecture, digest_of, load_network
from aihwkit_nabn.workloads._transformers_images import Processor, read_processor

_BATCH = 2
_POST = "post_process_object_detection"


def load_detector(
    architecture: Architecture,
    settings: LoadSettings,
    *,
    data: str,
    device: torch.device,
    per_class: bool = False,
) -> Workload:
    """Return a detector with data in COCO's form; arguments as for `load_transformers`.

    Raises:
        NabnError: the folder's parts or the data cannot be read, or do not fit each other.
    """
    folder = open_coco(data)
    label_of = _labels_of(folder.val, architecture)
    numbers = tested_objects(folder.val, settings)
    processor = read_processor(architecture, makes=_POST)
    model, notes = load_network(architecture)
    detector = TransformersDetector(
        name=architecture.name,
        origin=str(architecture.folder),
        model=model.to(device),
        numbers=numbers,
        settings=settings,
        device=device,
        per_class=per_class,
        notes=tuple(notes),
        folder=folder,
        label_of=label_of,
        processor=processor,
        digest=digest_of(architecture),
    )
    picture = FileList.loader(str(folder.val.path(numbers[0])))
    check_forward(model, architecture.name, detector.prepared(picture)[None].to(device))
    return detector.workload()


def _labels_of(truth: CocoAnnotations, architecture: Architecture) -> dict[int, int]:
    """Return the network's label of each category id; numbered labels may be the ids themselves."""
    ids, labels = list(truth.categories), architecture.labels
    if is_nameless(labels) and len(labels) == ids[-1] + 1 != len(ids) and ids[0] >= 0:
        return {number: number for number in ids}
    names = list(truth.categories.values())
    found = labels_of_names(names, labels, f"categories of {truth.source}", str(architecture.folder))
    return dict(zip(ids, found, strict=True))


@dataclass(frozen=True, kw_only=True)
class TransformersDetector(Detector):
    """One of transformers' detectors.

    Attributes:
        processor: Makes its input, and boxes of its outputs.
        digest: Tells the processor from others.
    """

    processor: Processor
    digest: str

    @property
    def batch_size(self) -> int:
        """As `Detector` has it."""
        return _BATCH

    @property
    def resizing(self) -> str:
        """As `Detector` has it."""
        return f"{self.processor}; products of two activations and what becomes boxes are computed digitally"

    @property
    def setup(self) -> dict[str, Any]:
        """As `Detector` has it."""
        return {"images": f"{PROCESSOR} {self.digest}"}

    def prepared(self, image: Image.Image) -> Tensor:
        """As `Detector` has it."""
        return self.processor(image)

    def found(self, model: nn.Module, images: Tensor, size: Size) -> Iterable[Any]:
        """As `Detector` has it, all that the network finds, however low its score."""
        make, config = getattr(self.processor.own, _POST), self.model.config
        options = {"use_focal_loss": getattr(config, "use_focal_loss", True)}
        known = inspect.signature(make).parameters
        found: Iterable[Any] = make(
            model(images),
            threshold=0.0,
            target_sizes=[size[::-1]] * len(images),
            **{name: value for name, value in options.items() if name in known},
        )
        return found

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the network's own loss, the mean of the images; those of one size go through together."""
        images, targets = batch
        seen = [self.prepared(pixels.to_pil_image(image)).to(self.device) for image in images]
        labels = [self._label(image, target) for image, target in zip(images, targets, strict=True)]
        groups = by_size([(image.shape[-1], image.shape[-2]) for image in seen], len(seen))
        parts = [
            len(group) * model(torch.stack([seen[i] for i in group]), labels=[labels[i] for i in group])
            for group in groups
        ]
        return torch.stack(parts).sum() / len(seen)

    def _label(self, image: Tensor, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is in an image ``[3, H, W]`` as the loss takes it: boxes in parts of the image."""
        height, width = image.shape[-2:]
        corners = target["boxes"] / torch.tensor([width, height, width, height])
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        return {"class_labels": target["labels"].to(self.device), "boxes": boxes.to(self.device)}
