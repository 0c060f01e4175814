"""Images compressed as JPEG and decompressed again."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aihwkit_nabn.errors import NabnError, check_count

LOWEST, HIGHEST = 1, 95


def check_quality(quality: object) -> int:
    """Return `quality` if it is an integer from 1 to 95, the range in which Pillow's scale is the usual one.

    Raises:
        NabnError: it is anything else.
    """
    number = check_count("JPEG quality", quality, minimum=LOWEST)
    if number > HIGHEST:
        raise NabnError(f"JPEG quality must be an integer from {LOWEST} to {HIGHEST}, got {quality!r}")
    return number


def compress_image(image: Image.Image, quality: int) -> Image.Image:
    """Return what is left of an image after JPEG at `quality`; the mode becomes RGB, or L for grey ones."""
    mode = "L" if image.mode in ("1", "L") else "RGB"
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format="JPEG", quality=check_quality(quality))
    with Image.open(buffer) as compressed:
        compressed.load()
        return compressed.convert(mode)


def compress_images(images: Tensor, quality: int) -> Tensor:
    """Return what is left of images after each went through JPEG on its own.

    Args:
        images: ``[N, 1 or 3, H, W]`` in [0, 1]; rounded to 8 bits first.
        quality: From 1 to 95.

    Returns:
        The images, of the same shape, in [0, 1].

    Raises:
        NabnError: the quality is out of range, or the images have another number of channels.
    """
    check_quality(quality)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise NabnError(f"images to compress must be [N, 1 or 3, H, W], got {list(images.shape)}")
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    decoded = [
        np.asarray(compress_image(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), quality))
        for image in pixels
    ]
    if not decoded:
        return images
    stacked = torch.from_numpy(np.stack(decoded).reshape(pixels.shape).copy())
    return stacked.permute(0, 3, 1, 2).to(images.dtype) / 255.0
