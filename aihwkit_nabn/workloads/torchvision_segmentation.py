"""``torchvision:NAME`` of a segmenter, measured by mIoU on images with masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model_weights, list_models, segmentation

from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.segmentation import IGNORED, LAYOUT, open_masks
from aihwkit_nabn.errors import check_count, check_flag
from aihwkit_nabn.seeding import check_seed
from aihwkit_nabn.workloads._base import LoadSettings, Workload
from aihwkit_nabn.workloads._folder import check_device, origin_of
from aihwkit_nabn.workloads._image_network import Size, check_forward, choose_tested
from aihwkit_nabn.workloads._segmentation_images import TorchvisionPipeline
from aihwkit_nabn.workloads._segmenter import Segmenter
from aihwkit_nabn.workloads._torchvision_segmenters import build_segmenter, load_segmenter
from aihwkit_nabn.workloads.torchvision import KIND

SEGMENTERS = list_models(module=segmentation)


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
    ignore_index: int = IGNORED,
) -> Workload:
    """Return a torchvision segmenter with images and masks.

    Calibration images come from ``images/train``, without masks: resized as for the test, and scaled, flipped and
    cropped at random; mIoU is measured on ``val`` at the size of the masks, as mmsegmentation does.

    Args:
        name: torchvision's.
        settings: How much of the data.
        checkpoint: File with the weights, or ``"random"``.
        data: The folder, see `aihwkit_nabn.data.segmentation`.
        take: Which weights of a file that holds several.
        image_size: Shorter side in pixels that images are resized to; None: 520, as torchvision has it.
        device: Where to compute.
        per_class: Report IoU class by class too.
        ignore_index: Value of mask pixels that count for nothing.

    Raises:
        NabnError: the weights or the data cannot be read, or do not fit each other.
    """
    check_seed("seed", settings.seed)
    where = check_device(device)
    folder = open_masks(data)
    model, names, notes = load_segmenter(name, checkpoint, folder, data, take, settings.seed, ignore_index)
    transforms: Any = next(iter(get_model_weights(name))).transforms()
    size = transforms.resize_size[0] if image_size is None else image_size
    numbers = choose_tested(len(folder.val.images), settings)
    segmenter = TorchvisionSegmenter(
        name=name,
        origin=origin_of(checkpoint),
        model=model.to(where),
        names=names,
        folder=folder,
        numbers=numbers,
        pipeline=TorchvisionPipeline(
            size=check_count("image_size", size, minimum=1),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            ignored=ignore_index,
        ),
        settings=settings,
        device=where,
        per_class=per_class,
        notes=tuple(notes),
    )
    segmenter.check_masks()
    image = FileList.loader(str(folder.val.images[numbers[0]]))
    check_forward(segmenter.model, name, segmenter.prepared(image)[None].to(where))
    return segmenter.workload()


@dataclass(frozen=True, kw_only=True)
class TorchvisionSegmenter(Segmenter):
    """One of torchvision's segmenters."""

    def found(self, model: nn.Module, images: Tensor, size: Size) -> Iterator[Tensor]:
        """As `Segmenter` has it, the scores of one image after the other enlarged to the size of its file."""
        for scores in model(images)["out"]:
            yield F.interpolate(scores[None], size=size[::-1], mode="bilinear", align_corners=False)[0].argmax(0)

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the cross entropy of all pixels that count."""
        images, masks = (part.to(self.device) for part in batch)
        return F.cross_entropy(model(images)["out"], masks, ignore_index=self.pipeline.ignored)


KIND.of_names.update(
    dict.fromkeys(
        SEGMENTERS,
        replace(
            KIND,
            load=load,
            options={**KIND.options, "per_class": check_flag, "ignore_index": check_count},
            build=build_segmenter,
            explained={"data": f": the folder; {LAYOUT}"},
            of_names={},
        ),
    )
)
