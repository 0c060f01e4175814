"""Inputs compressed as JPEG, as a transform for pipelines of configs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from mmengine.registry import TRANSFORMS
from PIL import Image

from aihwkit_nabn.data.jpeg import check_quality, compress_image
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.config import pipelines_in, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

_LOADERS = ("LoadImageFromFile", "LoadImageFromNDArray")


@TRANSFORMS.register_module()
class CompressJPEG:
    """Compresses images as JPEG: ``dict(type='CompressJPEG', quality=30)`` behind ``LoadImageFromFile``.

    Args:
        quality: From 1 to 95, Pillow's scale.

    Raises:
        NabnError: the quality is out of range.
    """

    def __init__(self, quality: int) -> None:
        self.quality = check_quality(quality)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replace ``results['img']``, ``[H, W, 3]`` uint8 in BGR or ``[H, W]``, by what is left of it."""
        image = np.asarray(results["img"])
        if image.dtype != np.uint8:
            raise NabnError(f"CompressJPEG needs images of 8 bits, got {image.dtype}; put it behind LoadImageFromFile")
        colour = image.ndim == 3 and image.shape[2] == 3
        pixels = image[..., ::-1] if colour else image.reshape(image.shape[:2])
        left = np.asarray(compress_image(Image.fromarray(np.ascontiguousarray(pixels)), self.quality))
        results["img"] = np.ascontiguousarray(left[..., ::-1]) if colour else left.reshape(image.shape)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(quality={self.quality})"


def compress_inputs(config: Config, quality: int) -> Config:
    """Return a copy of a config whose test and train images are compressed when they have been loaded.

    Raises:
        NabnError: the quality is out of range, or a pipeline loads no image.
    """
    config = copy.deepcopy(config)
    transform = {"type": "CompressJPEG", "quality": check_quality(quality)}
    for field in ("test_dataloader", "train_dataloader"):
        dataset = (config.get(field) or {}).get("dataset")
        loaders = [
            (pipeline, place)
            for pipeline in pipelines_in(dataset)
            for place, step in enumerate(pipeline)
            if isinstance(step, dict) and type_name(step.get("type")) in _LOADERS
        ]
        if dataset and not loaders:
            raise NabnError(f"{field} of {config.filename!r} has no pipeline with {_LOADERS[0]}: no place for JPEG")
        for pipeline, place in reversed(loaders):
            pipeline.insert(place + 1, dict(transform))
    return config
