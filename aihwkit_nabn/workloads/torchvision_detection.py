"""``torchvision:NAME`` of a detector, measured by pycocotools on data in COCO's form."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection, list_models
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional as pixels

from aihwkit_nabn.data.box_metrics import KINDS, BoxMetric
from aihwkit_nabn.data.coco import LAYOUT, CocoAnnotations, CocoFolder, open_coco
from aihwkit_nabn.data.image_files import FileList
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.jpeg import check_quality, compress_image
from aihwkit_nabn.errors import NabnError, check_flag
from aihwkit_nabn.evaluation.examples import SCORE, Example, View, write_examples
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.seeding import check_seed, derive_seed
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import CalibrationRequest, LoadSettings, Workload, WorkloadKind
from aihwkit_nabn.workloads._checks import check_positive, check_text
from aihwkit_nabn.workloads._detection_training import LabelledImages
from aihwkit_nabn.workloads._folder import check_device
from aihwkit_nabn.workloads._images import SizedImages
from aihwkit_nabn.workloads._torchvision_detectors import build_detector, load_detector, set_size
from aihwkit_nabn.workloads._torchvision_files import RANDOM, Calibration, calibrated_with, check_forward
from aihwkit_nabn.workloads.torchvision import KIND

DETECTORS = [name for name in list_models(module=detection) if not name.startswith("keypointrcnn")]
_WORKERS = 2
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
    numbers = choose(len(truth.images), settings.test_images, derive_seed(settings.seed, "test images"))
    if not truth.has_objects(numbers):
        raise NabnError(f"{truth.source} has no object in the {len(numbers)} images to be tested on")
    sizes = truth.sizes(numbers)
    check_forward(model, name, torch.zeros(1, 3, *sizes[0][::-1], device=where))
    return Detector(
        name=name,
        checkpoint=checkpoint,
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
class Detector:
    """A detector and its images.

    Attributes:
        name: torchvision's.
        checkpoint: Where its weights are from.
        model: The network, in eval mode, on its device.
        folder: The data.
        label_of: The network's label of each category id.
        numbers: Which images of ``val`` are measured on.
        settings: As the user gave them.
        device: Where the network is.
        per_class: Whether each class's mAP is told too.
        notes: On the weights.
        jpeg: Quality at which test and calibration images are compressed, or None.
    """

    name: str
    checkpoint: str
    model: Any
    folder: CocoFolder
    label_of: Mapping[int, int]
    numbers: Sequence[int]
    settings: LoadSettings
    device: torch.device
    per_class: bool
    notes: tuple[str, ...]
    jpeg: int | None = None

    def workload(self) -> Workload:
        """Return the detector as a workload."""
        truth, train = self.folder.val, self._images(self.folder.train)
        kinds = KINDS if has_masks(self.model) and truth.has_masks else KINDS[:1]
        metric = BoxMetric(
            truth, self.numbers, {n: c for c, n in self.label_of.items()}, kinds=kinds, per_class=self.per_class
        )
        tested = self._images([truth.path(place) for place in range(len(truth.images))])
        groups = tested.groups(self.numbers, self._size())
        batches = tested.batches(self.numbers, self._size(), images=PLAIN, jpeg=self.jpeg)

        def eval_fn(model: nn.Module) -> dict[str, float]:
            entries: list[dict[str, Any]] = []
            with torch.no_grad():
                for places, images in zip(groups, batches, strict=True):
                    for place, found in zip(places, model(images.to(self.device)), strict=True):
                        entries += metric.entries(self.numbers[place], found)
            return metric.numbers(entries)

        calibration = Calibration(
            images=train, batch_size=self._size(), device=self.device, run=run_detector, jpeg=self.jpeg
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
            description=(*self._describe(kinds), *self.notes),
            facts={"test_images": len(self.numbers)},
        )

    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `Workload.held_back`."""
        if not self.folder.has_train_annotations:
            return None
        truth, paths = self.folder.train_annotations(), self.folder.train
        used = {paths[place] for place in calibrated_with(len(paths), request)}
        order = choose(len(truth.images), None, derive_seed(request.seed, "held back"))
        left = [place for place in order if truth.path(place) not in used][:count]
        if not truth.has_objects(left):
            return None
        truth.sizes(left)
        return replace(self, folder=replace(self.folder, val=truth), numbers=left).workload().eval_fn

    def write_examples(self, result: Any, arguments: Mapping[str, Any], count: int, folder: Path) -> Path:
        """As `Workload.write_examples`."""
        truth, numbers = self.folder.val, self.numbers[:count]
        places = {category: place for place, category in enumerate(truth.categories)}
        place_of = {label: places[category] for category, label in self.label_of.items()}
        pictures = [self.read(truth.path(number)) for number in numbers]

        def known(number: int) -> View:
            entries = [(entry["bbox"], places[entry["category_id"]]) for entry in truth.objects[number]]
            return View(boxes=[([x, y, x + width, y + height], place) for (x, y, width, height), place in entries])

        def predict(model: Any) -> list[View]:
            views = []
            for picture in pictures:
                with torch.no_grad():
                    found = model(pixels.to_tensor(picture)[None].to(self.device))[0]
                rows = zip(*(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
                shown = [(box, place_of[n]) for box, n, score in rows if score > SCORE and n in place_of]
                views.append(View(boxes=shown))
            return views

        examples = [
            Example(name=truth.path(number).name, picture=picture, truth=known(number))
            for number, picture in zip(numbers, pictures, strict=True)
        ]
        return write_examples(result, self.model, arguments, examples, predict, list(truth.categories.values()), folder)

    def read(self, path: Path) -> Image.Image:
        """Return a test image as it is tested: compressed, where it is."""
        picture = FileList.loader(str(path))
        return picture if self.jpeg is None else compress_image(picture, self.jpeg)

    def _images(self, paths: Sequence[Any]) -> SizedImages:
        workers = _WORKERS if self.settings.loader_workers is None else self.settings.loader_workers
        return SizedImages(paths=paths, test=pixels.to_tensor, training=_flipped_at_random, workers=workers)

    def _size(self) -> int:
        return self.settings.batch_size or (_FREE if self.model.transform.fixed_size is None else _FIXED)

    def _describe(self, kinds: Sequence[str]) -> list[str]:
        origin = "random weights" if self.checkpoint == RANDOM else self.checkpoint
        truth, fixed = self.folder.val, self.model.transform.fixed_size
        size = (
            f"shorter side to {self.model.transform.min_size[-1]}" if fixed is None else f"to {fixed[1]} x {fixed[0]}"
        )
        lines = [
            f"{self.name} ({origin}), {len(truth.categories)} classes, images resized in the network ({size} pixels); "
            "proposals, RoIAlign and non-maximum suppression are computed digitally",
            f"mAP of {' and '.join({'bbox': 'boxes', 'segm': 'masks'}[kind] for kind in kinds)} on {len(self.numbers)} "
            f"of the {len(truth.images)} images in {truth.source}, calibration with some of the "
            f"{len(self.folder.train)} in {self.folder.root}, without annotations",
        ]
        if has_masks(self.model) and len(kinds) == 1:
            lines.append(f"{truth.source} has objects without segmentation: mask mAP is not measured")
        return lines

    def check_recipe(self, recipe: Recipe) -> None:
        """As `Workload.check_recipe`."""
        self._training_data()

    def _training_data(self) -> CocoAnnotations:
        found = self.folder.train_annotations()
        if has_masks(self.model) and not found.has_masks:
            raise NabnError(f"{self.name} trains on masks, but {found.source} has objects without segmentation")
        return found

    def trained(self, noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> TrainedModel:
        """As `Workload.train`, with torchvision's own losses, on the images that have objects."""
        images = LabelledImages(self._training_data(), self.label_of, has_masks(self.model))
        options: dict[str, Any] = vars(recipe)

        def losses(model: Any, batch: Any) -> Tensor:
            seen = [image.to(self.device) for image in batch[0]]
            targets = [{name: value.to(self.device) for name, value in target.items()} for target in batch[1]]
            return torch.stack(list(model(seen, targets).values())).sum()

        return train_hardware_aware(
            self.model,
            lambda epoch: images.batches(self._size(), derive_seed(recipe.seed, "training", epoch)),
            noise=noise,
            rpu_config=rpu_config,
            loss_fn=losses,
            **options,
        )


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


def _flipped_at_random(image: Any) -> Tensor:
    tensor = pixels.to_tensor(image)
    return tensor.flip(-1) if torch.rand(()) < 0.5 else tensor


KIND.of_names.update(
    dict.fromkeys(
        DETECTORS,
        WorkloadKind(
            load=load,
            options={
                "checkpoint": check_text,
                "data": check_text,
                "take": check_text,
                "image_size": check_positive,
                "device": check_text,
                "per_class": check_flag,
            },
            required=("checkpoint", "data"),
            named=True,
            build=build_detector,
            explained={"data": f": the folder; {LAYOUT}"},
        ),
    )
)
