"""``torchvision:NAME``: any of torchvision's classifiers on a folder of images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import Normalize

from aihwkit_nabn.data.image_folder import TransformedImages, open_image_folder
from aihwkit_nabn.data.jpeg import compress_image
from aihwkit_nabn.sweeps.fields import check_positive, check_text
from aihwkit_nabn.sweeps.models._base import MODELS, Bench, MemoryImages, ModelKind, digits_as
from aihwkit_nabn.targets import TargetOptions
from aihwkit_nabn.targets.torchvision import check_device, load_model, pipelines


@dataclass(frozen=True, kw_only=True)
class FileImages:
    """Images read from files; compression comes before resizing, as it does in a camera."""

    folder: ImageFolder
    test: Callable[[Image.Image], Tensor]
    training: Callable[[Image.Image], Tensor]

    @property
    def labels(self) -> Tensor:
        """``[N]`` class indices."""
        return torch.tensor(self.folder.targets)

    def plain(self, indices: Sequence[int], jpeg: int | None) -> Tensor:
        """As `Images.plain`."""
        return self._read(indices, jpeg, self.test, 0)

    def augmented(self, indices: Sequence[int], jpeg: int | None, seed: int) -> Tensor:
        """As `Images.augmented`."""
        return self._read(indices, jpeg, self.training, seed)

    def _read(
        self, indices: Sequence[int], jpeg: int | None, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> Tensor:
        def whole(image: Image.Image) -> Tensor:
            return transform(image if jpeg is None else compress_image(image, jpeg))

        images = TransformedImages(self.folder, list(indices), whole, seed)
        return torch.stack([images[place][0] for place in range(len(images))])


def load(name: str, options: dict[str, Any]) -> Bench:
    """Return a torchvision classifier; the other data set is the digits, enlarged."""
    device = check_device(options.get("device", "cpu"))
    folder = open_image_folder(options["data"])
    target = TargetOptions(weights=options["weights"], data=Path(options["data"]), take=options.get("take"))
    model, own, notes = load_model(name, target, len(folder.classes))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    model = model.to(device)
    test, training, size = pipelines(name, options.get("image_size") or getattr(model, "image_size", None), own)
    normalise = next(step for step in test.transforms if isinstance(step, Normalize))
    return Bench(
        model=model,
        train=FileImages(folder=folder.train, test=test, training=training),
        test=FileImages(folder=folder.val, test=test, training=training),
        other=MemoryImages(data=digits_as(3, size), normalise=normalise, augment=lambda images, seed: images),
        other_name="handwritten digits",
        device=device,
    )


MODELS.register("torchvision")(
    ModelKind(
        load=load,
        options={
            "weights": check_text,
            "take": check_text,
            "data": check_text,
            "image_size": check_positive,
            "device": check_text,
        },
        required=("weights", "data"),
        named=True,
    )
)
