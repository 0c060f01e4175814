"""How image files become a classifier's input: size, normalisation, interpolation, and where they are from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.workloads._base import Check
from aihwkit_nabn.workloads._checks import check_choice, check_positive, short

_CHANNELS = (1, 3)
_FITS = ("center", "squash", "border")


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an image file becomes what the network takes.

    Attributes:
        size: Edge of the network's input, in pixels.
        resize: Edge that images are resized to before the centre is cut out.
        mean: Per channel, of images in [0, 1]; a single one: images are read in grey.
        std: Likewise.
        interpolation: Of the resizing.
        fit: What is resized to `resize`, as timm's ``crop_mode`` has it: ``"center"`` the shorter edge, ``"squash"``
            both edges, ``"border"`` the longer one, with a border of the mean around it.
        origin: Where these values are from, for the user.
    """

    size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: InterpolationMode = InterpolationMode.BILINEAR
    fit: str = "center"
    origin: str = "the usual ones for ImageNet"

    @classmethod
    def carried_by(cls, model: nn.Module, image_size: int | None = None) -> ImageInput | None:
        """Return what a model's own configuration says, as timm's models carry one; None: it has none.

        Args:
            model: The model.
            image_size: In place of the configuration's.

        Raises:
            NabnError: it asks for something else than square images in grey or colour.
        """
        names = (name for name in ("pretrained_cfg", "default_cfg") if isinstance(getattr(model, name, None), Mapping))
        name = next(names, None)
        if name is None:
            return None
        config = {key: value for key, value in getattr(model, name).items() if value is not None}
        channels, height, width = config.get("input_size", (3, cls.size, cls.size))
        height, width = (height, width) if image_size is None else (image_size, image_size)
        fit = config.get("crop_mode", _FITS[0])
        if height != width or channels not in _CHANNELS or fit not in _FITS:
            raise NabnError(
                f"{name} of {type(model).__name__} asks for images of {channels} x {height} x {width}, crop_mode "
                f"{fit}; only square ones of 1 or 3 channels can be read; --image-size gives another size"
            )
        return cls(
            size=height,
            resize=math.floor(height / config.get("crop_pct", 0.875)),
            mean=tuple(config.get("mean", cls.mean)),
            std=tuple(config.get("std", cls.std)),
            interpolation=InterpolationMode(config.get("interpolation", "bicubic")),
            fit=fit,
            origin=f"the model's {name}",
        )

    def changed(
        self,
        *,
        image_size: int | None = None,
        crop_pct: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
    ) -> ImageInput:
        """Return the same with what the user gave.

        Args:
            image_size: As `size`; `resize` grows with it.
            crop_pct: `size` over `resize`.
            mean: As the attribute.
            std: Likewise.
            interpolation: Its name.

        Raises:
            NabnError: mean and std have different numbers of channels.
        """
        given = {"image_size": image_size, "crop_pct": crop_pct, "mean": mean, "std": std}
        names = [name for name, value in {**given, "interpolation": interpolation}.items() if value is not None]
        size = image_size or self.size
        resize = round(size * self.resize / self.size) if crop_pct is None else math.floor(size / crop_pct)
        found = replace(
            self,
            size=size,
            resize=resize,
            mean=self.mean if mean is None else tuple(mean),
            std=self.std if std is None else tuple(std),
            interpolation=self.interpolation if interpolation is None else InterpolationMode(interpolation),
            origin=f"{', '.join(names)} as given, the others {self.origin}" if names else self.origin,
        )
        if len(found.mean) != len(found.std):
            raise NabnError(f"mean and std must have as many channels, got {found.mean} and {found.std}")
        return found

    @property
    def channels(self) -> int:
        """1, images in grey, or 3."""
        return len(self.mean)

    @property
    def normalise(self) -> transforms.Normalize:
        """From images in [0, 1] to what the network takes."""
        return transforms.Normalize(self.mean, self.std)

    @property
    def test(self) -> transforms.Compose:
        """From a PIL image to the network's input, as for testing."""
        edges = [self.resize, self.resize] if self.fit == "squash" else self.resize
        first: list[Any] = [transforms.Resize(edges, self.interpolation)]
        if self.fit == "border":
            first = [transforms.Lambda(partial(_bordered, self))]
        return self._pipeline([*first, transforms.CenterCrop(self.size)])

    @property
    def training(self) -> transforms.Compose:
        """The same, augmented as usual in training: a random part of the image, flipped or not."""
        part = transforms.RandomResizedCrop(self.size, interpolation=self.interpolation)
        return self._pipeline([part, transforms.RandomHorizontalFlip()])

    def _pipeline(self, steps: list[Any]) -> transforms.Compose:
        grey = [transforms.Grayscale()] if self.channels == 1 else []
        return transforms.Compose([*grey, *steps, transforms.ToTensor(), self.normalise])

    def __str__(self) -> str:
        """Return a line for the user."""
        resized = {
            "center": f"shorter edge to {self.resize}",
            "squash": f"squashed to {self.resize} x {self.resize}",
            "border": f"longer edge to {self.resize}, a border around",
        }
        mean, std = (",".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return (
            f"images: {resized[self.fit]} ({self.interpolation.value}), centre of {self.size} x {self.size}"
            f"{' in grey' if self.channels == 1 else ''}, mean {mean}, std {std}: {self.origin}"
        )


def _bordered(images: ImageInput, image: Image.Image) -> Image.Image:
    """Resize the longer edge, and fill up to the network's size."""
    ratio = images.resize / max(image.size)
    width, height = (round(edge * ratio) for edge in image.size)
    resized = TF.resize(image, [height, width], images.interpolation)
    across, down = (max(images.size - edge, 0) for edge in (width, height))
    fill = [round(255 * value) for value in images.mean]
    border = [across // 2, down // 2, across - across // 2, down - down // 2]
    return TF.pad(resized, border, fill=fill if len(fill) > 1 else fill[0])


def check_channels(field: str, value: object, *, positive: bool = False) -> tuple[float, ...]:
    """Return a number per channel, from a list, a number, or text with commas.

    Raises:
        NabnError: they are not one or three finite numbers, or not positive where they must be.
    """
    parts: Any = value.split(",") if isinstance(value, str) else value
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in _CHANNELS:
        raise NabnError(f"{field} must be three numbers, as 0.5,0.5,0.5, or one for images in grey, got {short(value)}")
    return tuple(check_number(field, number, exclusive_minimum=0.0 if positive else None) for number in numbers)


def _check_crop_pct(field: str, value: object) -> float:
    return check_number(field, value, exclusive_minimum=0.0, maximum=1.0)


IMAGE_OPTIONS: dict[str, Check] = {
    "image_size": check_positive,
    "crop_pct": _check_crop_pct,
    "mean": check_channels,
    "std": partial(check_channels, positive=True),
    "interpolation": partial(check_choice, known=[mode.value for mode in InterpolationMode]),
}
"""What a user may say about images, by the name of the option."""
