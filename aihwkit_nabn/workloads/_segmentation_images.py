"""What is made of an image before it goes into a segmenter, in testing and in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pixels

# Of torchvision's training: crops of 480 pixels out of images whose shorter side is 0.5 to 2 times 520.
_CROP, _SCALES = 480 / 520, (0.5, 2.0)
_P = TypeVar("_P", Image.Image, Tensor)


@dataclass(frozen=True, kw_only=True)
class Pipeline(ABC):
    """From an image to what a segmenter takes.

    Attributes:
        size: Shorter side of its input in pixels.
        ignored: Value of mask pixels that count for nothing.
        crop: Side of the pieces in training, in parts of `size`.
        mean: Of the pixels, in [0, 1], by colour: what lies beyond the edges of an image.
    """

    size: int
    ignored: int
    crop: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)

    @abstractmethod
    def prepared(self, image: Image.Image) -> Tensor:
        """Return an image as the network is tested on it, ``[3, H, W]``."""

    @abstractmethod
    def normalised(self, image: Image.Image) -> Tensor:
        """Return an image of the right size as the network takes it, ``[3, H, W]``."""

    def augmented(self, image: Image.Image) -> Tensor:
        """Return an image as in training, ``[3, C, C]``: scaled, flipped and cropped at random."""
        return self.normalised(self._draw().moved(image, self._grey(), InterpolationMode.BILINEAR))

    def labelled(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return an image as in training, and its mask ``[H, W]`` moved with it, ``[C, C]``."""
        drawn = self._draw()
        seen = drawn.moved(image, self._grey(), InterpolationMode.BILINEAR)
        return self.normalised(seen), drawn.moved(mask[None], self.ignored, InterpolationMode.NEAREST)[0]

    def _draw(self) -> _Move:
        scaled = max(1, round(self.size * float(torch.empty(()).uniform_(*_SCALES))))
        left, top, flip = torch.rand(3).tolist()
        return _Move(scaled, max(1, round(self.size * self.crop)), (left, top), flip < 0.5)

    def _grey(self) -> tuple[int, ...]:
        return tuple(round(255 * value) for value in self.mean)


@dataclass(frozen=True, kw_only=True)
class TorchvisionPipeline(Pipeline):
    """As torchvision does it: resizes and normalises.

    Attributes:
        std: Of the pixels, in [0, 1], by colour.
    """

    std: tuple[float, ...]
    crop: float = _CROP

    def prepared(self, image: Image.Image) -> Tensor:
        """As `Pipeline` has it."""
        return self.normalised(pixels.resize(image, [self.size]))

    def normalised(self, image: Image.Image) -> Tensor:
        """As `Pipeline` has it."""
        tensor: Tensor = pixels.normalize(pixels.to_tensor(image), list(self.mean), list(self.std))
        return tensor

    def __str__(self) -> str:
        """Return what is done, for the user."""
        return f"images resized (shorter side to {self.size} pixels)"


@dataclass(frozen=True)
class _Move:
    """What was drawn for one image.

    Args:
        scaled: Its shorter side.
        crop: Side of the piece.
        corner: Where that begins, in [0, 1) of the places it may begin at.
        flip: Whether left and right change places.
    """

    scaled: int
    crop: int
    corner: tuple[float, float]
    flip: bool

    def moved(self, picture: _P, fill: Any, mode: InterpolationMode) -> _P:
        moving: Any = pixels.resize(picture, [self.scaled], mode)
        moving = pixels.hflip(moving) if self.flip else moving
        right, below = (max(0, self.crop - side) for side in pixels.get_image_size(moving))
        moving = pixels.pad(moving, [0, 0, right, below], fill=fill)
        sides = pixels.get_image_size(moving)
        left, top = (int(at * (side - self.crop + 1)) for at, side in zip(self.corner, sides, strict=True))
        piece: _P = pixels.crop(moving, top, left, self.crop, self.crop)
        return piece
