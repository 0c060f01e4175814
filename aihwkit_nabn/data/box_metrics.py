"""Mean average precision of boxes and masks, by pycocotools, under mmdetection's names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from aihwkit_nabn.data.coco import CocoAnnotations

PREFIX = "coco/"
KINDS = ("bbox", "segm")
# As COCOeval orders its numbers; a size of which there is no object has none.
_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_MASK_THRESHOLD = 0.5


class BoxMetric:
    """Gathers what is found in some images, and compares it with their annotations.

    Args:
        truth: The annotations.
        places: Which of their images.
        category_of: The category id that each of the network's labels stands for; other labels are left out.
        kinds: Of ``"bbox"`` and ``"segm"``.
        per_class: Whether each class's mAP is told too.

    Source: COCO's metric (Lin et al. 2014, arXiv 1405.0312), at most 100 objects an image.
    """

    def __init__(
        self,
        truth: CocoAnnotations,
        places: Sequence[int],
        category_of: Mapping[int, int],
        *,
        kinds: Sequence[str] = KINDS[:1],
        per_class: bool = False,
    ) -> None:
        self.truth, self.places, self.category_of = truth, list(places), dict(category_of)
        self.kinds, self.per_class = tuple(kinds), per_class
        # Numbered anew: to COCOeval an object with the id 0 is none.
        objects = [entry for place in self.places for entry in truth.objects[place]]
        self._truth = self._coco([{**entry, "id": number} for number, entry in enumerate(objects, start=1)])

    def _coco(self, annotations: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        coco = COCO()
        coco.dataset = {
            "images": [self.truth.images[place] for place in self.places],
            "categories": [{"id": number, "name": name} for number, name in self.truth.categories.items()],
            "annotations": annotations,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco

    def entries(self, place: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return what a network of torchvision's found in an image as COCO's entries.

        Args:
            place: Of the image.
            found: ``boxes [N, 4]`` (left, top, right, bottom), ``labels [N]``, ``scores [N]`` and, for ``segm``,
                ``masks [N, 1, H, W]`` in [0, 1].
        """
        image, entries = self.truth.images[place]["id"], []
        columns = [found[name].cpu().tolist() for name in ("boxes", "labels", "scores")]
        for number, (box, label, score) in enumerate(zip(*columns, strict=True)):
            if label not in self.category_of:
                continue
            left, top, right, bottom = box
            entry = {"image_id": image, "category_id": self.category_of[label], "score": score, "iscrowd": 0}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            if KINDS[1] in self.kinds:
                entry["segmentation"] = _encoded(found["masks"][number, 0])
            entries.append(entry)
        return entries

    def numbers(self, entries: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Return mAP by name, for all entries together: ``coco/bbox_mAP``, ``coco/bbox_mAP_50``, ..."""
        numbers: dict[str, float] = {}
        for kind in self.kinds:
            numbers |= self._of_kind(kind, entries)
        return numbers

    def _of_kind(self, kind: str, entries: Sequence[dict[str, Any]]) -> dict[str, float]:
        from pycocotools.cocoeval import COCOeval
        from pycocotools.mask import area

        found = [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]
        if kind == KINDS[1]:  # small, medium and large are meant of the masks
            found = [{**entry, "area": float(area(entry["segmentation"]))} for entry in found]
        with contextlib.redirect_stdout(io.StringIO()):
            judged = COCOeval(self._truth, self._coco(found), kind)
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        main = f"{PREFIX}{kind}_"
        told = {f"{main}{name}": float(value) for name, value in zip(_NAMES, judged.stats, strict=False) if value >= 0}
        return told | (self._classes(f"{main}{_NAMES[0]}", judged) if self.per_class else {})

    def _classes(self, main: str, judged: Any) -> dict[str, float]:
        """Return the mAP of each class that the images have, as ``coco/bbox_mAP/car``."""
        precision = judged.eval["precision"][..., 0, -1]  # [IoU, recall, class]: of any size, at most 100 an image
        means = {}
        for index, number in enumerate(judged.params.catIds):
            known = precision[..., index][precision[..., index] > -1]
            if known.size:
                means[f"{main}/{self.truth.categories[number]}"] = float(np.mean(known))
        return means


def _encoded(mask: Tensor) -> Any:
    from pycocotools.mask import encode

    return encode(np.asfortranarray((mask > _MASK_THRESHOLD).cpu().numpy().astype(np.uint8)))
