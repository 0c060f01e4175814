"""A detector measured by pycocotools on data in COCO's form, whosever network it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as pixels

from aihwkit_nabn.data.box_metrics import KINDS, BoxMetric
from aihwkit_nabn.data.coco import CocoAnnotations, CocoFolder
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.examples import SCORE, View
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import CalibrationRequest, LoadSettings
from aihwkit_nabn.workloads._detection_training import LabelledImages
from aihwkit_nabn.workloads._image_network import ImageNetwork, calibrated_with, choose_tested, order_held_back


@dataclass(frozen=True, kw_only=True)
class Detector(ImageNetwork):
    """A detector and its images.

    What it finds in an image are ``boxes [N, 4]`` (left, top, right, bottom, in pixels of the file), ``labels [N]``,
    ``scores [N]`` and, where it finds masks, ``masks [N, 1, H, W]``.

    Attributes:
        folder: The data.
        label_of: The network's label of each category id.
    """

    folder: CocoFolder
    label_of: Mapping[int, int]

    @property
    def finds_masks(self) -> bool:
        """Whether it finds masks too."""
        return False

    @property
    @abstractmethod
    def resizing(self) -> str:
        """How images become its input, and what of it is computed digitally, for the user."""

    @property
    def test_paths(self) -> Sequence[Path]:
        """As `ImageNetwork` has it."""
        truth = self.folder.val
        return [truth.path(place) for place in range(len(truth.images))]

    @property
    def train_paths(self) -> Sequence[Path]:
        """As `ImageNetwork` has it."""
        return self.folder.train

    @property
    def classes(self) -> list[str]:
        """As `ImageNetwork` has it."""
        return list(self.folder.val.categories.values())

    @property
    def _kinds(self) -> Sequence[str]:
        return KINDS if self.finds_masks and self.folder.val.has_masks else KINDS[:1]

    def augmented(self, image: Image.Image) -> Tensor:
        """Return an image flipped at random, as the network takes it."""
        return self.prepared(pixels.hflip(image) if torch.rand(()) < 0.5 else image)

    @cached_property
    def _metric(self) -> BoxMetric:
        category_of = {label: category for category, label in self.label_of.items()}
        return BoxMetric(self.folder.val, self.numbers, category_of, kinds=self._kinds, per_class=self.per_class)

    def measured(self, found: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """As `ImageNetwork` has it."""
        entries = [entry for number, objects in found for entry in self._metric.entries(number, objects)]
        return self._metric.numbers(entries)

    def known(self, number: int) -> View:
        """As `ImageNetwork` has it."""
        places = self._places()
        entries = [(entry["bbox"], places[entry["category_id"]]) for entry in self.folder.val.objects[number]]
        return View(boxes=[([x, y, x + width, y + height], place) for (x, y, width, height), place in entries])

    def seen(self, found: Any) -> View:
        """As `ImageNetwork` has it."""
        places = self._places()
        place_of = {label: places[category] for category, label in self.label_of.items()}
        rows = zip(*(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
        return View(boxes=[(box, place_of[n]) for box, n, score in rows if score > SCORE and n in place_of])

    def _places(self) -> dict[int, int]:
        return {category: place for place, category in enumerate(self.folder.val.categories)}

    def describe(self) -> list[str]:
        """As `ImageNetwork` has it."""
        truth, kinds = self.folder.val, self._kinds
        lines = [
            f"{self.name} ({self.origin}), {len(truth.categories)} classes, {self.resizing}",
            f"mAP of {' and '.join({'bbox': 'boxes', 'segm': 'masks'}[kind] for kind in kinds)} on {len(self.numbers)} "
            f"of the {len(truth.images)} images in {truth.source}, calibration with some of the "
            f"{len(self.folder.train)} in {self.folder.root}, without annotations",
        ]
        if self.finds_masks and len(kinds) == 1:
            lines.append(f"{truth.source} has objects without segmentation: mask mAP is not measured")
        return lines

    def check_recipe(self, recipe: Recipe) -> None:
        """As `ImageNetwork` has it."""
        self._training_data()

    def _training_data(self) -> CocoAnnotations:
        found = self.folder.train_annotations()
        if self.finds_masks and not found.has_masks:
            raise NabnError(f"{self.name} trains on masks, but {found.source} has objects without segmentation")
        return found

    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `ImageNetwork` has it."""
        if not self.folder.has_train_annotations:
            return None
        truth, paths = self.folder.train_annotations(), self.folder.train
        used = {paths[place] for place in calibrated_with(len(paths), request)}
        order = order_held_back(len(truth.images), request)
        left = [place for place in order if truth.path(place) not in used][:count]
        if not truth.has_objects(left):
            return None
        truth.sizes(left)
        return replace(self, folder=replace(self.folder, val=truth), numbers=left).workload().eval_fn

    def labelled(self) -> Callable[[int], Iterable[Any]]:
        """Return a function of a seed that gives the images that have objects, see `LabelledImages`."""
        images = LabelledImages(self._training_data(), self.label_of, self.finds_masks)
        return lambda seed: images.batches(self.settings.batch_size or self.batch_size, seed)


def tested_objects(truth: CocoAnnotations, settings: LoadSettings) -> list[int]:
    """Return the numbers of the test images to be measured on; their sizes are checked.

    Raises:
        NabnError: there is no object in them, or an image has another size than its annotations say.
    """
    numbers = choose_tested(len(truth.images), settings)
    if not truth.has_objects(numbers):
        raise NabnError(f"{truth.source} has no object in the {len(numbers)} images to be tested on")
    truth.sizes(numbers)
    return numbers
