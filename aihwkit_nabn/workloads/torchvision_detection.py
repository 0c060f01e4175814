"""``torchvision:NAME`` of a detector, measured by pycocotools on data in COCO's form."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional as pixels

from aihwkit_nabn.data.coco import LAYOUT, open_coco
from aihwkit_nabn.data.image_files import size_of
from aihwkit_nabn.errors import check_flag
from aihwkit_nabn.seeding import check_seed
from aihwkit_nabn.workloads._base import LoadSettings, Workload
from aihwkit_nabn.workloads._detector import Detector, tested_objects
from aihwkit_nabn.workloads._folder import check_device, origin_of
from aihwkit_nabn.workloads._image_network import Size, check_forward
from aihwkit_nabn.workloads._torchvision_detectors import build_detector, load_detector, set_size
from aihwkit_nabn.workloads.torchvision import KIND

DETECTORS = [name for name in list_models(module=detection) if not name.startswith("keypointrcnn")]
# Images per batch: of a fixed small size (SSD), and of COCO's sizes, as torchvision trains.
_FIXED, _FREE = 8, 2


def load(
    name: str,
    settings: LoadSettings,
    *,
    checkpoint: str,
    data: str,
    take: str | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    per_class: bool = False,
) -> Workload:
    """Return a torchvision detector with data in COCO's form.

    Calibration images are those in ``train/``, without annotations: as they are, and flipped at random; box mAP, and
    mask mAP of Mask R-CNN, are measured on ``val/``. Normalisation and resizing are the network's own.

    Args:
        name: torchvision's.
        settings: How much of the data.
        checkpoint: File with the weights, or ``"random"``.
        data: The folder, see `aihwkit_nabn.data.coco`.
        take: Which weights of a file that holds several.
        image_size: Shorter side in pixels that the network resizes images to, or both sides for SSD; None: its own.
        device: Where to compute.
        per_class: Report mAP class by class too.

    Raises:
        NabnError: the weights or the data cannot be read, or do not fit each other.
    """
    check_seed("seed", settings.seed)
    where = check_device(device)
    folder = open_coco(data)
    truth = folder.val
    loaded = load_detector(name, checkpoint, truth.categories, str(truth.source), take=take, seed=settings.seed)
    model = loaded.model.to(where)
    if image_size is not None:
        set_size(model, image_size)
    if has_masks(model):
        model.transform.__class__ = _Transform
    numbers = tested_objects(truth, settings)
    width, height = size_of(truth.path(numbers[0]))
    check_forward(model, name, torch.zeros(1, 3, height, width, device=where))
    return TorchvisionDetector(
        name=name,
        origin=origin_of(checkpoint),
        model=model,
        folder=folder,
        label_of=loaded.label_of,
        numbers=numbers,
        settings=settings,
        device=where,
        per_class=per_class,
        notes=tuple(loaded.notes),
    ).workload()


def has_masks(model: Any) -> bool:
    """Whether a detector finds masks too."""
    return bool(getattr(getattr(model, "roi_heads", None), "has_mask", lambda: False)())


@dataclass(frozen=True, kw_only=True)
class TorchvisionDetector(Detector):
    """One of torchvision's detectors, which resize and normalise images themselves."""

    @property
    def finds_masks(self) -> bool:
        """Whether it finds masks too."""
        return has_masks(self.model)

    @property
    def batch_size(self) -> int:
        """As `Detector` has it."""
        return _FREE if self.model.transform.fixed_size is None else _FIXED

    @property
    def resizing(self) -> str:
        """As `Detector` has it."""
        fixed = self.model.transform.fixed_size
        size = (
            f"shorter side to {self.model.transform.min_size[-1]}" if fixed is None else f"to {fixed[1]} x {fixed[0]}"
        )
        return (
            f"images resized in the network ({size} pixels); proposals, RoIAlign and non-maximum suppression are "
            "computed digitally"
        )

    def prepared(self, image: Image.Image) -> Tensor:
        """Return an image ``[3, H, W]`` in [0, 1]."""
        tensor: Tensor = pixels.to_tensor(image)
        return tensor

    def found(self, model: nn.Module, images: Tensor, size: Size) -> Iterable[Any]:
        """As `Detector` has it."""
        found: list[Any] = model(images)
        return found

    def run(self, model: nn.Module, images: Tensor) -> Any:
        """As `Detector` has it."""
        return run_detector(model, images)

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the sum of torchvision's own losses."""
        seen = [image.to(self.device) for image in batch[0]]
        targets = [{name: value.to(self.device) for name, value in target.items()} for target in batch[1]]
        return torch.stack(list(model(seen, targets).values())).sum()


_thread = threading.local()


class _Transform(GeneralizedRCNNTransform):
    """torchvision's, but that masks stay as the network gives them while it is calibrated.

    To paste each into its image takes much time and memory, and no layer runs after it.
    """

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        if getattr(_thread, "calibrating", False):
            return result
        return super().postprocess(result, image_shapes, original_image_sizes)


def run_detector(model: nn.Module, images: Tensor) -> Any:
    """Run a detector as it is tested, on images ``[N, 3, H, W]`` in [0, 1]."""
    _thread.calibrating = True  # several passes may run side by side, in threads
    try:
        return model(images)
    finally:
        _thread.calibrating = False


KIND.of_names.update(
    dict.fromkeys(
        DETECTORS,
        replace(
            KIND,
            load=load,
            options={**KIND.options, "per_class": check_flag},
            build=build_detector,
            explained={"data": f": the folder; {LAYOUT}"},
            of_names={},
        ),
    )
)
