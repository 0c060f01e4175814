"""A segmenter measured by mIoU on images with masks, whosever network it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.segmentation import MaskFolder, Overlaps
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.examples import View
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.seeding import derive_seed, private_rng
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import CalibrationRequest
from aihwkit_nabn.workloads._image_network import ImageNetwork, calibrated_with, groups_for_training, order_held_back
from aihwkit_nabn.workloads._segmentation_images import Pipeline

_BATCH = 4


@dataclass(frozen=True, kw_only=True)
class Segmenter(ImageNetwork):
    """A segmenter and its images; what it finds in one are the classes ``[H, W]`` of its pixels.

    Attributes:
        names: Of its classes.
        folder: The data.
        pipeline: From an image to what the network takes.
    """

    names: Sequence[str]
    folder: MaskFolder
    pipeline: Pipeline

    @property
    def test_paths(self) -> Sequence[Path]:
        """As `ImageNetwork` has it."""
        return self.folder.val.images

    @property
    def train_paths(self) -> Sequence[Path]:
        """As `ImageNetwork` has it."""
        return self.folder.train.images

    @property
    def batch_size(self) -> int:
        """As `ImageNetwork` has it."""
        return _BATCH

    @property
    def classes(self) -> list[str]:
        """As `ImageNetwork` has it."""
        return list(self.names)

    @property
    def resizing(self) -> str:
        """How images become its input, for the user."""
        return str(self.pipeline)

    @property
    def setup(self) -> dict[str, Any]:
        """As `Workload.facts` has it."""
        return {"ignore_index": self.pipeline.ignored}

    def prepared(self, image: Image.Image) -> Tensor:
        """As `ImageNetwork` has it."""
        return self.pipeline.prepared(image)

    def augmented(self, image: Image.Image) -> Tensor:
        """As `ImageNetwork` has it."""
        return self.pipeline.augmented(image)

    def measured(self, found: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """As `ImageNetwork` has it."""
        overlaps = Overlaps(len(self.names), self.pipeline.ignored)
        for number, classes in found:
            overlaps.add(classes, self.truth(number))
        return overlaps.numbers(self.names, per_class=self.per_class)

    def truth(self, number: int) -> Tensor:
        """Return the mask ``[H, W]`` of a test image."""
        return self.folder.val.mask(number, len(self.names), self.pipeline.ignored)

    def known(self, number: int) -> View:
        """As `ImageNetwork` has it."""
        return View(segments=self.truth(number).numpy())

    def seen(self, found: Any) -> View:
        """As `ImageNetwork` has it."""
        return View(segments=found.cpu().numpy())

    def describe(self) -> list[str]:
        """As `ImageNetwork` has it."""
        val, train = self.folder.val, self.folder.train
        return [
            f"{self.name} ({self.origin}), {len(self.names)} classes, {self.resizing}",
            f"mIoU on {len(self.numbers)} of the {len(val.images)} images in {val.root} (mask pixels of "
            f"{self.pipeline.ignored} count for nothing), calibration with some of the {len(train.images)} in "
            f"{train.root}, without masks",
        ]

    def check_masks(self) -> None:
        """Read the masks of the images to be measured on.

        Raises:
            NabnError: one is missing or wrong, or no pixel of them has a class.
        """
        ignored = self.pipeline.ignored
        if not sum(int((self.truth(number) != ignored).sum()) for number in self.numbers):
            raise NabnError(f"no pixel of the masks to be tested on has a class; {ignored} counts for nothing")

    def check_recipe(self, recipe: Recipe) -> None:
        """As `ImageNetwork` has it."""
        for place in range(len(self.folder.train.images)):
            self.folder.train.mask_path(place)

    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `ImageNetwork` has it."""
        train = self.folder.train
        used = set(calibrated_with(len(train.images), request))
        order = order_held_back(len(train.images), request)
        left = [place for place in order if place not in used and train.has_mask(place)][:count]
        if not left:
            return None
        return replace(self, folder=replace(self.folder, val=train), numbers=left).workload().eval_fn

    def labelled(self) -> Callable[[int], Iterable[Any]]:
        """As `ImageNetwork` has it."""
        return lambda seed: _Epoch(self, seed)


class _Epoch:
    """All training images with their masks once, in random order, each moved at random."""

    def __init__(self, segmenter: Segmenter, seed: int) -> None:
        self.segmenter, self.seed = segmenter, seed
        order = choose(len(segmenter.folder.train.images), None, derive_seed(seed, "order"))
        self.groups = groups_for_training(order, segmenter.settings.batch_size or _BATCH)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.groups:
            images, masks = zip(*map(self._item, group), strict=True)
            yield torch.stack(images), torch.stack(masks)

    def _item(self, place: int) -> tuple[Tensor, Tensor]:
        of, part = self.segmenter, self.segmenter.folder.train
        image = FileList.loader(str(part.images[place]))
        mask = part.mask(place, len(of.names), of.pipeline.ignored)
        with private_rng(derive_seed(self.seed, "moved", place)):
            return of.pipeline.labelled(image, mask)
