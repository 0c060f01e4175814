"""The workload of a classifier, from its images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.data.classification import ImageSet, batch_accuracy
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.jpeg import check_quality
from aihwkit_nabn.errors import NabnError, check_count
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import SOURCES, CalibrationRequest, LoadSettings, Workload, check_source
from aihwkit_nabn.workloads._images import Images, with_twins


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained classifier and its images.

    Attributes:
        model: The digital model, in eval mode, on its device.
        train: Where calibration images come from.
        test: What accuracy is measured on.
        other: Makes another data set, in the same form.
        other_name: What the other data set is.
        settings: As the user gave them.
        batch_size: Images per forward pass when testing and when calibrating, where the settings and the request say
            nothing.
        training_batches: Called as ``training_batches(epoch, seed)``; returns all training images, augmented anew, in a
            new order, as batches ``(images, labels)``.
        top5: Whether top-5 accuracy is measured too.
        device: Where the model is.
        jpeg: Quality at which test and calibration images are compressed, or None.
        description: As `Workload` has it.
        setup: As `Workload.facts` has it.
    """

    model: nn.Module
    train: Images
    test: Images
    other: Callable[[], Images]
    other_name: str
    settings: LoadSettings
    batch_size: tuple[int, int]
    training_batches: Callable[[int, int], Iterable[Any]]
    top5: bool = False
    device: torch.device = torch.device("cpu")
    jpeg: int | None = None
    description: tuple[str, ...] = ()
    setup: Mapping[str, Any] = field(default_factory=dict)

    def workload(self) -> Workload:
        """Return the classifier as a workload.

        Raises:
            NabnError: there are not as many test images as asked for.
        """
        numbers = self.test_numbers()
        tested = _Tested(self, self.test, numbers)
        return Workload(
            model=self.model,
            eval_fn=tested.accuracy,
            calibration=self.calibration,
            forward_fn=self.forward,
            reference_forward_fn=self.reference_forward,
            train=self.trained,
            compressed=lambda quality: replace(self, jpeg=check_quality(quality)).workload(),
            test_set=tested.whole,
            held_back=self.held_back,
            sources=SOURCES,
            description=self.description,
            facts={"test_images": len(numbers), "other_data": self.other_name, "setup": self.setup},
        )

    def test_numbers(self) -> list[int]:
        """Return the numbers of the test images, in random order."""
        total, wanted = len(self.test.labels), self.settings.test_images
        return choose(total, wanted, derive_seed(self.settings.seed, "test images"))

    def calibration(self, request: CalibrationRequest) -> Iterable[Any]:
        """As `Workload.calibration`.

        Raises:
            NabnError: there are not so many images.
        """
        source, indices = self.chosen(request)
        size = request.batch_size or self.batch_size[1]

        def batches(jpeg: int | None) -> Iterable[Tensor]:
            return source.batches(indices, size, images=request.images, seed=request.seed, jpeg=jpeg)

        return with_twins(batches, request.reference_skips, self.jpeg)

    def chosen(self, request: CalibrationRequest) -> tuple[Images, list[int]]:
        """Return where calibration images come from, and their numbers.

        With ``one_class``, chip after chip has another class.
        """
        check_source(request.source, SOURCES)
        source = self.other() if request.source == "other_data" else self.train
        candidates = torch.arange(len(source.labels))
        if request.source == "one_class":
            classes = source.labels.unique()
            candidates = candidates[source.labels == classes[request.chip_seed % len(classes)]]
        if request.n is not None and check_count("samples", request.n, minimum=1) > len(candidates) and request.exact:
            raise NabnError(
                f"samples must be at most {len(candidates)}, the number of images for calibration: {request.source} "
                f"(chip {request.chip_seed}), got {request.n}"
            )
        key = ("calibration images",) if request.source == SOURCES[0] else ("calibration images", request.source)
        return source, candidates[choose(len(candidates), request.n, derive_seed(request.seed, *key))].tolist()

    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `Workload.held_back`: from the end of the order whose beginning is calibrated with."""
        images, order = self.chosen(replace(request, n=None))
        left = order[len(order) if request.n is None else request.n :][-count:]
        return _Tested(self, images, left).accuracy if left else None

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the chip: of a pair, on the compressed images."""
        return model((batch[1] if isinstance(batch, tuple) else batch).to(self.device))

    def reference_forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the reference: of a pair, on the clean images."""
        return model((batch[0] if isinstance(batch, tuple) else batch).to(self.device))

    def trained(self, noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> TrainedModel:
        """As `Workload.train`."""
        options: dict[str, Any] = vars(recipe)
        return train_hardware_aware(
            self.model,
            lambda epoch: self.training_batches(epoch, recipe.seed),
            noise=noise,
            rpu_config=rpu_config,
            **options,
        )


class _Tested:
    """Labelled images of a classifier that are measured on."""

    def __init__(self, classifier: Classifier, images: Images, numbers: Sequence[int]) -> None:
        self.classifier = classifier
        self.labels = images.labels[torch.tensor(numbers)]
        self.size = classifier.settings.batch_size or classifier.batch_size[0]
        self.images = images.batches(numbers, self.size, images=PLAIN, jpeg=classifier.jpeg)

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        device = self.classifier.device
        pairs = zip(self.images, self.labels.split(self.size), strict=True)
        moved = ((images.to(device), labels.to(device)) for images, labels in pairs)
        return batch_accuracy(model, moved, top5=self.classifier.top5)

    def whole(self) -> ImageSet:
        return ImageSet(images=torch.cat(list(self.images)), labels=self.labels).to(self.classifier.device)
