"""What a folder's image processor makes of an image before it goes in, in testing and in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as pixels

from aihwkit_nabn.errors import NabnError, first_line
from aihwkit_nabn.workloads._segmentation_images import Pipeline
from aihwkit_nabn.workloads._transformers_files import PROCESSOR, Architecture, load_processor

_SHAPES = ((64, 48), (48, 64))


@dataclass(frozen=True)
class Processor:
    """A folder's image processor, for one image at a time and without padding: images of one size go in together.

    Args:
        own: transformers' object.
        place: Its file, for messages.
    """

    own: Any
    place: str

    def __call__(self, image: Image.Image, **changed: Any) -> Tensor:
        """Return an image as the network takes it, ``[3, H, W]``.

        Args:
            image: The image in RGB.
            changed: What it is told in place of what the file says.

        Raises:
            NabnError: it makes something else of it.
        """
        unpadded = {"do_pad": False} if getattr(self.own, "do_pad", None) else {}
        values = self.own(images=image, return_tensors="pt", **unpadded, **changed).get("pixel_values")
        if not isinstance(values, Tensor) or values.ndim != 4 or len(values) != 1:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise NabnError(f"{self.place} must make one image [3, H, W] of an image, got {shape}")
        return values[0].float()

    def scaled(self, image: Image.Image) -> Tensor:
        """Return an image of the network's own size with its values as the network takes them."""
        kept = {name: False for name in ("do_resize", "do_center_crop") if getattr(self.own, name, None)}
        return self(image, **kept)

    def __str__(self) -> str:
        """Return what it does, for the user."""
        own, told = self.own.to_dict(), [type(self.own).__name__]
        for name in ("size", "crop_size"):
            size = dict(own.get(name) or {})
            if set(size) == {"height", "width"}:
                told.append(f"{name} {size['width']} x {size['height']}")
            elif size:
                told.append(f"{name} {' '.join(f'{key} {value}' for key, value in size.items())}")
        numbers = {name: own.get(f"image_{name}") for name in ("mean", "std") if own.get("do_normalize")}
        told += [f"{name} {','.join(f'{v:.3g}' for v in value)}" for name, value in numbers.items() if value]
        return f"images: {', '.join(told)}: {self.place}"


def read_processor(architecture: Architecture, makes: str = "") -> Processor:
    """Return a folder's image processor.

    Args:
        architecture: Of the folder.
        makes: The method that makes results of the network's outputs, where it is needed.

    Raises:
        NabnError: there is none, it cannot be read, lacks the method, fails on an image, or pads images to a size of
            its own.
    """
    own, place = load_processor(architecture), str(architecture.folder / PROCESSOR)
    if makes and not hasattr(own, makes):
        raise NabnError(f"{type(own).__name__} of {place} has no {makes}")
    if getattr(own, "do_pad", None) and getattr(own, "pad_size", None):
        raise NabnError(
            f"{place} pads images to {dict(own.pad_size)}, which a network must be told of by a mask; do_pad must be "
            "false: images of one size go through together, each without padding"
        )
    found = Processor(own, place)
    try:
        found(Image.new("RGB", _SHAPES[0]))
    except NabnError:
        raise
    except Exception as error:  # each processor has its own way of refusing what its file says
        raise NabnError(f"{place} fails on an image: {type(error).__name__}: {first_line(error)}") from error
    return found


class ClassifierImages:
    """How image files become a classifier's input.

    Args:
        processor: The folder's.

    Attributes:
        size: Edge of the network's input, in pixels.
        channels: 3.

    Raises:
        NabnError: the network's images are not square, or of a size that depends on the file's.
    """

    channels = 3

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        shapes = {tuple(processor(Image.new("RGB", shape)).shape) for shape in _SHAPES}
        channels, height, width = next(iter(shapes))
        if len(shapes) > 1 or height != width or channels != self.channels:
            text = " and ".join(" x ".join(map(str, shape)) for shape in sorted(shapes))
            raise NabnError(
                f"{processor.place} must make square images of one size and 3 channels for a classifier, got {text}"
            )
        self.size = int(height)
        self._part = transforms.Compose([transforms.RandomResizedCrop(self.size), transforms.RandomHorizontalFlip()])

    def test(self, image: Image.Image) -> Tensor:
        """Return an image as the network is tested on it."""
        return self.processor(image)

    def training(self, image: Image.Image) -> Tensor:
        """Return a random part of it, flipped or not."""
        return self.processor.scaled(self._part(image))

    def normalise(self, images: Tensor) -> Tensor:
        """Return images ``[N, 3, size, size]`` in [0, 1] as the network takes them."""
        return torch.stack([self.processor.scaled(pixels.to_pil_image(image)) for image in images])

    def __str__(self) -> str:
        """Return a line for the user."""
        return str(self.processor)


@dataclass(frozen=True, kw_only=True)
class ProcessorPipeline(Pipeline):
    """As the folder's image processor does it; in training, crops as large as the network's input.

    Attributes:
        processor: The folder's.
    """

    processor: Processor

    def prepared(self, image: Image.Image) -> Tensor:
        """As `Pipeline` has it."""
        return self.processor(image)

    def normalised(self, image: Image.Image) -> Tensor:
        """As `Pipeline` has it."""
        return self.processor(image)

    def __str__(self) -> str:
        """Return what is done, for the user."""
        return str(self.processor)
