"""What torchvision's detectors and segmenters share: their weights' files, and unlabelled images of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.data.state_dicts import find_weights
from aihwkit_nabn.data.weights import count_classes, read_checkpoint, tensor_names
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.workloads._base import SOURCES, CalibrationRequest, check_source
from aihwkit_nabn.workloads._images import SizedImages, with_twins
from aihwkit_nabn.workloads.torchvision import published_weights

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class ReadWeights:
    """A file's tensors, by the names that a network of torchvision's has for them.

    Attributes:
        state: The tensors.
        outputs: How many classes the network tells apart, the background included where it counts as one.
        published: Which of torchvision's own they are, or None.
        source: What they are called in messages.
        notes: Lines on what was taken of several.
    """

    state: Mapping[str, Tensor]
    outputs: int
    published: WeightsEnum | None
    source: str
    notes: list[str]

    @property
    def categories(self) -> list[str] | None:
        """The names of the classes, of torchvision's own weights."""
        return None if self.published is None else list(self.published.meta["categories"])


def read_weights(
    name: str,
    checkpoint: str,
    build: Callable[[int], nn.Module],
    *,
    take: str | None,
    rename: Callable[[str], str] | None = None,
) -> ReadWeights:
    """Read a network's weights.

    Args:
        name: torchvision's.
        checkpoint: The file.
        build: Makes the network for a number of classes.
        take: Which of several weights.
        rename: Returns today's name of a tensor for one that older files have.

    Raises:
        NabnError: they cannot be read, or are another network's.
    """
    source = f"weights {checkpoint}"
    found = find_weights(read_checkpoint(checkpoint), tensor_names(build), source, take=take, rename=rename)
    return ReadWeights(
        state=found.state,
        outputs=count_classes(found.state, build, source),
        published=published_weights(name, checkpoint),
        source=source,
        notes=found.notes(source),
    )


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


def check_forward(model: nn.Module, name: str, images: Tensor) -> None:
    """Raise unless a network can be run on images ``[N, 3, H, W]``.

    Raises:
        NabnError: it cannot; the size is named.
    """
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:  # each network has its own way of refusing a size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        height, width = images.shape[-2:]
        raise NabnError(f"{name} cannot take images of {width} x {height} pixels as they are set: {reason}") from error


def groups_for_training(order: list[int], size: int) -> list[list[int]]:
    """Cut into groups of `size`; a rest of one goes with those before, for BatchNorm takes no single value."""
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups
