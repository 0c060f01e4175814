"""``torchvision:NAME`` of a segmenter, measured by mIoU on images with masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model_weights, list_models, segmentation

from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.jpeg import check_quality, compress_image
from aihwkit_nabn.data.segmentation import IGNORED, LAYOUT, MaskFolder, Overlaps, open_masks
from aihwkit_nabn.errors import NabnError, check_count, check_flag
from aihwkit_nabn.evaluation.examples import Example, View, write_examples
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.seeding import check_seed, derive_seed, private_rng
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import CalibrationRequest, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_positive, check_text
from aihwkit_nabn.workloads._folder import check_device
from aihwkit_nabn.workloads._images import SizedImages
from aihwkit_nabn.workloads._segmentation_images import Pipeline
from aihwkit_nabn.workloads._torchvision_files import (
    RANDOM,
    Calibration,
    calibrated_with,
    check_forward,
    groups_for_training,
)
from aihwkit_nabn.workloads._torchvision_segmenters import build_segmenter, load_segmenter
from aihwkit_nabn.workloads.torchvision import KIND

SEGMENTERS = list_models(module=segmentation)
_WORKERS, _BATCH = 2, 4


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
    numbers = choose(len(folder.val.images), settings.test_images, derive_seed(settings.seed, "test images"))
    segmenter = Segmenter(
        name=name,
        checkpoint=checkpoint,
        model=model.to(where),
        names=names,
        folder=folder,
        numbers=numbers,
        pipeline=Pipeline(
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
    counted = sum(int((segmenter.truth(number) != ignore_index).sum()) for number in numbers)  # checks each mask
    if not counted:
        raise NabnError(f"no pixel of the masks to be tested on has a class; {ignore_index} counts for nothing")
    with Image.open(folder.val.images[numbers[0]]) as image:
        check_forward(segmenter.model, name, segmenter.pipeline.prepared(image.convert("RGB"))[None].to(where))
    return segmenter.workload()


@dataclass(frozen=True, kw_only=True)
class Segmenter:
    """A segmenter and its images.

    Attributes:
        name: torchvision's.
        checkpoint: Where its weights are from.
        model: The network, in eval mode, on its device.
        names: Of its classes.
        folder: The data.
        numbers: Which images of ``val`` are measured on.
        pipeline: From an image to what the network takes.
        settings: As the user gave them.
        device: Where the network is.
        per_class: Whether each class's IoU is told too.
        notes: On the weights.
        jpeg: Quality at which test and calibration images are compressed, or None.
    """

    name: str
    checkpoint: str
    model: nn.Module
    names: Sequence[str]
    folder: MaskFolder
    numbers: Sequence[int]
    pipeline: Pipeline
    settings: LoadSettings
    device: torch.device
    per_class: bool
    notes: tuple[str, ...]
    jpeg: int | None = None

    def workload(self) -> Workload:
        """Return the segmenter as a workload."""
        tested, size = self._images(self.folder.val.images), self.settings.batch_size or _BATCH
        groups = tested.groups(self.numbers, size)
        batches = tested.batches(self.numbers, size, images=PLAIN, jpeg=self.jpeg)

        def eval_fn(model: nn.Module) -> dict[str, float]:
            overlaps = Overlaps(len(self.names), self.pipeline.ignored)
            with torch.no_grad():
                for places, images in zip(groups, batches, strict=True):
                    for place, logits in zip(places, model(images.to(self.device))["out"], strict=True):
                        truth = self.truth(self.numbers[place])
                        overlaps.add(_classes(logits, tuple(truth.shape)), truth)
            return overlaps.numbers(self.names, per_class=self.per_class)

        calibration = Calibration(
            images=self._images(self.folder.train.images),
            batch_size=size,
            device=self.device,
            run=lambda model, images: model(images),
            jpeg=self.jpeg,
        )
        return Workload(
            model=self.model,
            eval_fn=eval_fn,
            calibration=calibration.batches,
            forward_fn=calibration.forward,
            reference_forward_fn=calibration.reference_forward,
            train=self.trained,
            check_recipe=self.check_recipe,
            compressed=lambda quality: replace(self, jpeg=check_quality(quality)).workload(),
            write_examples=self.write_examples,
            held_back=self.held_back,
            description=(*self._describe(), *self.notes),
            facts={"test_images": len(self.numbers), "setup": {"ignore_index": self.pipeline.ignored}},
        )

    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `Workload.held_back`."""
        train = self.folder.train
        used = set(calibrated_with(len(train.images), request))
        order = choose(len(train.images), None, derive_seed(request.seed, "held back"))
        left = [place for place in order if place not in used and train.has_mask(place)][:count]
        if not left:
            return None
        return replace(self, folder=replace(self.folder, val=train), numbers=left).workload().eval_fn

    def write_examples(self, result: Any, arguments: Mapping[str, Any], count: int, folder: Path) -> Path:
        """As `Workload.write_examples`."""
        numbers = self.numbers[:count]
        paths = [self.folder.val.images[number] for number in numbers]
        pictures = [FileList.loader(str(path)) for path in paths]
        pictures = [p if self.jpeg is None else compress_image(p, self.jpeg) for p in pictures]

        def predict(model: Any) -> list[View]:
            views = []
            for picture in pictures:
                with torch.no_grad():
                    logits = model(self.pipeline.prepared(picture)[None].to(self.device))["out"][0]
                views.append(View(segments=_classes(logits, picture.size[::-1]).cpu().numpy()))
            return views

        examples = [
            Example(name=path.name, picture=picture, truth=View(segments=self.truth(number).numpy()))
            for number, path, picture in zip(numbers, paths, pictures, strict=True)
        ]
        return write_examples(result, self.model, arguments, examples, predict, self.names, folder)

    def truth(self, number: int) -> Tensor:
        """Return the mask ``[H, W]`` of a test image."""
        return self.folder.val.mask(number, len(self.names), self.pipeline.ignored)

    def _images(self, paths: Sequence[Path]) -> SizedImages:
        workers = _WORKERS if self.settings.loader_workers is None else self.settings.loader_workers
        return SizedImages(paths=paths, test=self.pipeline.prepared, training=self.pipeline.augmented, workers=workers)

    def _describe(self) -> list[str]:
        origin = "random weights" if self.checkpoint == RANDOM else self.checkpoint
        return [
            f"{self.name} ({origin}), {len(self.names)} classes, images resized (shorter side to {self.pipeline.size} "
            "pixels)",
            f"mIoU on {len(self.numbers)} of the {len(self.folder.val.images)} images in {self.folder.val.root} (mask "
            f"pixels of {self.pipeline.ignored} count for nothing), calibration with some of the "
            f"{len(self.folder.train.images)} in {self.folder.train.root}, without masks",
        ]

    def check_recipe(self, recipe: Recipe) -> None:
        """As `Workload.check_recipe`."""
        for place in range(len(self.folder.train.images)):
            self.folder.train.mask_path(place)

    def trained(self, noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> TrainedModel:
        """As `Workload.train`, with the cross entropy of all pixels that count."""
        options: dict[str, Any] = vars(recipe)

        def loss(model: Any, batch: Any) -> Tensor:
            images, masks = (part.to(self.device) for part in batch)
            return F.cross_entropy(model(images)["out"], masks, ignore_index=self.pipeline.ignored)

        return train_hardware_aware(
            self.model,
            lambda epoch: _Epoch(self, derive_seed(recipe.seed, "training", epoch)),
            noise=noise,
            rpu_config=rpu_config,
            loss_fn=loss,
            **options,
        )


def _classes(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the class of each pixel ``[H, W]`` of an image of this size, for ``[classes, h, w]`` logits."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)


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


KIND.of_names.update(
    dict.fromkeys(
        SEGMENTERS,
        WorkloadKind(
            load=load,
            options={
                "checkpoint": check_text,
                "data": check_text,
                "take": check_text,
                "image_size": check_positive,
                "device": check_text,
                "per_class": check_flag,
                "ignore_index": check_count,
            },
            required=("checkpoint", "data"),
            named=True,
            build=build_segmenter,
            explained={"data": f": the folder; {LAYOUT}"},
        ),
    )
)
