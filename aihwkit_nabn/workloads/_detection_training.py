"""What detectors are trained on: images with what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import functional as pixels

from aihwkit_nabn.data.coco import CocoAnnotations
from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import derive_seed, private_rng
from aihwkit_nabn.workloads._image_network import groups_for_training


class LabelledImages:
    """Images with what is in them, as detectors are trained; crowds and boxes without area left out.

    Args:
        truth: The annotations.
        label_of: The network's label of each category id.
        masks: Whether targets have masks.
    """

    def __init__(self, truth: CocoAnnotations, label_of: Mapping[int, int], masks: bool) -> None:
        self.truth, self.label_of, self.masks = truth, label_of, masks
        self.objects = [list(filter(_is_trained_on, entries)) for entries in truth.objects]
        self.places = [place for place, entries in enumerate(self.objects) if entries]
        if not self.places:
            raise NabnError(f"{truth.source} has no object to train on")
        truth.sizes(self.places)

    def batches(self, size: int, seed: int) -> _Epoch:
        """Return all images in random order, each flipped or not, as batches of lists of images and of targets."""
        order = [self.places[i] for i in choose(len(self.places), None, derive_seed(seed, "order"))]
        return _Epoch(self, groups_for_training(order, size), seed)

    def item(self, place: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return an image ``[3, H, W]`` and its target."""
        image = pixels.to_tensor(FileList.loader(str(self.truth.path(place))))
        entries, width = self.objects[place], image.shape[-1]
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        target = {"boxes": boxes, "labels": torch.tensor([self.label_of[entry["category_id"]] for entry in entries])}
        if self.masks:
            target["masks"] = torch.stack([_mask(entry, *image.shape[-2:]) for entry in entries])
        if flip:
            image = image.flip(-1)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            target |= {"masks": target["masks"].flip(-1)} if self.masks else {}
        return image, target


def _is_trained_on(entry: Mapping[str, Any]) -> bool:
    return not entry["iscrowd"] and min(entry["bbox"][2:]) > 0


@dataclass(frozen=True)
class _Epoch:
    """One pass over the images."""

    images: LabelledImages
    groups: list[list[int]]
    seed: int

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        for group in self.groups:
            items = []
            for place in group:
                with private_rng(derive_seed(self.seed, "flip", place)):
                    flip = bool(torch.rand(()) < 0.5)
                items.append(self.images.item(place, flip))
            yield [image for image, _ in items], [target for _, target in items]


def _mask(entry: Mapping[str, Any], height: int, width: int) -> Tensor:
    from pycocotools import mask as coco

    given = entry["segmentation"]
    if isinstance(given, list):
        encoded = coco.merge(coco.frPyObjects(given, height, width))
    else:
        encoded = coco.frPyObjects(given, height, width) if isinstance(given["counts"], list) else given
    return torch.from_numpy(coco.decode(encoded))
