"""What detectors and segmenters share: images of any size, measuring, drawing, training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from aihwkit_nabn.data.image_files import FileList, size_of
from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.jpeg import check_quality, compress_image
from aihwkit_nabn.errors import NabnError, first_line
from aihwkit_nabn.evaluation.examples import Example, View, write_examples
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import EvalFn
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.training import TrainedModel, TrainingNoise, train_hardware_aware
from aihwkit_nabn.training.recipe import Recipe
from aihwkit_nabn.workloads._base import SOURCES, CalibrationRequest, LoadSettings, Workload, check_source
from aihwkit_nabn.workloads._images import SizedImages, with_twins

_WORKERS = 2
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ImageNetwork(ABC):
    """A trained network, images of any size, and how it is measured on them.

    Attributes:
        name: The network's.
        origin: Where its weights are from, for the user.
        model: The network, in eval mode, on its device.
        numbers: Which test images are measured on.
        settings: As the user gave them.
        device: Where the network is.
        per_class: Whether each class's measure is told too.
        notes: Lines on the weights.
        jpeg: Quality at which test and calibration images are compressed, or None.
    """

    name: str
    origin: str
    model: Any
    numbers: Sequence[int]
    settings: LoadSettings
    device: torch.device
    per_class: bool
    notes: tuple[str, ...]
    jpeg: int | None = None

    @property
    @abstractmethod
    def test_paths(self) -> Sequence[Path]:
        """Files of all test images, by number."""

    @property
    @abstractmethod
    def train_paths(self) -> Sequence[Path]:
        """Files of the images for calibration."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Images of one size per batch, where the user says nothing."""

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """The names of the classes, as views number them."""

    @property
    def setup(self) -> dict[str, Any]:
        """As `Workload.facts` has it."""
        return {}

    @abstractmethod
    def prepared(self, image: Image.Image) -> Tensor:
        """Return an image as the network is tested on it, ``[3, H, W]``."""

    @abstractmethod
    def augmented(self, image: Image.Image) -> Tensor:
        """Return an image as in training, changed at random, ``[3, H, W]``."""

    @abstractmethod
    def found(self, model: nn.Module, images: Tensor, size: Size) -> Iterable[Any]:
        """Return what a network finds in each of the prepared images ``[N, 3, H, W]``.

        Args:
            model: The network, or a chip.
            images: On its device.
            size: Width and height of the files they are from.
        """

    @abstractmethod
    def measured(self, found: Iterable[tuple[int, Any]]) -> dict[str, float]:
        """Return the metrics of what was found in test images, by number."""

    @abstractmethod
    def known(self, number: int) -> View:
        """Return what is in a test image."""

    @abstractmethod
    def seen(self, found: Any) -> View:
        """Return what was found in an image, to be drawn."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Return lines that say what is measured."""

    @abstractmethod
    def check_recipe(self, recipe: Recipe) -> None:
        """As `Workload.check_recipe`."""

    @abstractmethod
    def held_back(self, count: int, request: CalibrationRequest) -> EvalFn | None:
        """As `Workload.held_back`."""

    @abstractmethod
    def labelled(self) -> Callable[[int], Iterable[Any]]:
        """Return a function of a seed that gives the batches of an epoch."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the loss of a batch of `labelled`."""

    def run(self, model: nn.Module, images: Tensor) -> Any:
        """Run a network for calibration on prepared images ``[N, 3, H, W]``."""
        return model(images)

    def workload(self) -> Workload:
        """Return the network as a workload."""
        paths, size = self.test_paths, self.settings.batch_size or self.batch_size
        tested = self._images(paths)
        groups = tested.groups(self.numbers, size)
        batches = tested.batches(self.numbers, size, images=PLAIN, jpeg=self.jpeg)

        def found_in_all(model: nn.Module) -> Iterator[tuple[int, Any]]:
            for places, images in zip(groups, batches, strict=True):
                numbers = [self.numbers[place] for place in places]
                found = self.found(model, images.to(self.device), size_of(paths[numbers[0]]))
                yield from zip(numbers, found, strict=True)

        def eval_fn(model: nn.Module) -> dict[str, float]:
            with torch.no_grad():
                return self.measured(found_in_all(model))

        calibration = Calibration(
            images=self._images(self.train_paths), batch_size=size, device=self.device, run=self.run, jpeg=self.jpeg
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
            description=(*self.describe(), *self.notes),
            facts={"test_images": len(self.numbers), "setup": self.setup},
        )

    def write_examples(self, result: Any, arguments: Mapping[str, Any], count: int, folder: Path) -> Path:
        """As `Workload.write_examples`."""
        numbers = self.numbers[:count]
        paths = [self.test_paths[number] for number in numbers]
        pictures = [self._read(path) for path in paths]

        def predict(model: Any) -> list[View]:
            with torch.no_grad():
                inputs = [(self.prepared(picture)[None].to(self.device), picture.size) for picture in pictures]
                return [self.seen(next(iter(self.found(model, images, size)))) for images, size in inputs]

        examples = [
            Example(name=path.name, picture=picture, truth=self.known(number))
            for number, path, picture in zip(numbers, paths, pictures, strict=True)
        ]
        return write_examples(result, self.model, arguments, examples, predict, self.classes, folder)

    def trained(self, noise: TrainingNoise, rpu_config: Any, recipe: Recipe) -> TrainedModel:
        """As `Workload.train`."""
        epoch_of, options = self.labelled(), dict[str, Any](vars(recipe))
        return train_hardware_aware(
            self.model,
            lambda epoch: epoch_of(derive_seed(recipe.seed, "training", epoch)),
            noise=noise,
            rpu_config=rpu_config,
            loss_fn=self.loss,
            **options,
        )

    def _read(self, path: Path) -> Image.Image:
        """Return an image as it is tested: compressed, where it is."""
        picture = FileList.loader(str(path))
        return picture if self.jpeg is None else compress_image(picture, self.jpeg)

    def _images(self, paths: Sequence[Path]) -> SizedImages:
        workers = _WORKERS if self.settings.loader_workers is None else self.settings.loader_workers
        return SizedImages(paths=paths, test=self.prepared, training=self.augmented, workers=workers)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Gives unlabelled images to a network, and runs it on them.

    Attributes:
        images: The images.
        batch_size: Images of one size per batch, where the request says nothing.
        device: Where the network is.
        run: Called as ``run(model, images)``.
        jpeg: Quality at which the images are compressed, or None.
    """

    images: SizedImages
    batch_size: int
    device: torch.device
    run: Callable[[nn.Module, Tensor], Any]
    jpeg: int | None = None

    def batches(self, request: CalibrationRequest) -> Iterable[Any]:
        """As `Workload.calibration`.

        Raises:
            NabnError: there are not so many images, or none from there.
        """
        check_source(request.source, SOURCES[:1])
        total = len(self.images.paths)
        if request.exact and request.n is not None and request.n > total:
            raise NabnError(f"samples must be at most {total}, the number of images for calibration, got {request.n}")
        indices = calibrated_with(total, request)
        size = request.batch_size or self.batch_size

        def made(jpeg: int | None) -> Iterable[Tensor]:
            return self.images.batches(indices, size, images=request.images, seed=request.seed, jpeg=jpeg)

        return with_twins(made, request.reference_skips, self.jpeg)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the chip: of a pair, on the compressed images."""
        return self.run(model, (batch[1] if isinstance(batch, tuple) else batch).to(self.device))

    def reference_forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the reference: of a pair, on the clean images."""
        return self.run(model, (batch[0] if isinstance(batch, tuple) else batch).to(self.device))


def calibrated_with(total: int, request: CalibrationRequest) -> list[int]:
    """Return the places of the calibration images among all in ``train``."""
    return choose(total, request.n, derive_seed(request.seed, "calibration images"))


def order_held_back(total: int, request: CalibrationRequest) -> list[int]:
    """Return the order in which labelled images of ``train`` are measured on beside a calibration."""
    return choose(total, None, derive_seed(request.seed, "held back"))


def choose_tested(total: int, settings: LoadSettings) -> list[int]:
    """Return the numbers of the test images to be measured on, of so many."""
    return choose(total, settings.test_images, derive_seed(settings.seed, "test images"))


def check_forward(model: nn.Module, name: str, images: Tensor) -> None:
    """Raise unless a network can be run on images ``[N, 3, H, W]``.

    Raises:
        NabnError: it cannot; the size is named.
    """
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:  # each network has its own way of refusing a size
        height, width = images.shape[-2:]
        raise NabnError(
            f"{name} cannot take images of {width} x {height} pixels as they are set: {first_line(error)}"
        ) from error


def groups_for_training(order: list[int], size: int) -> list[list[int]]:
    """Cut into groups of `size`; a rest of one goes with those before, for BatchNorm takes no single value."""
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups
