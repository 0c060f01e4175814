from __future__ import annotations

import pytest
import torch
from PIL import Image

from aihwkit_nabn.data.jpeg import compress_image, compress_images
from aihwkit_nabn.errors import NabnError


@pytest.mark.parametrize("channels", [1, 3])
def test_lower_quality_is_farther_from_the_image(channels: int) -> None:
    ramp = torch.linspace(0, 1, 24).expand(2, channels, 16, 24)
    images = (ramp + 0.2 * torch.rand(ramp.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    errors = [float((compress_images(images, quality) - images).square().mean()) for quality in (95, 50, 10)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.05
    compressed = compress_images(images, 30)
    assert compressed.shape == images.shape and compressed.dtype == images.dtype
    assert torch.equal(compressed[:1], compress_images(images[:1], 30)), "each image on its own"
    assert torch.equal((compressed * 255).round() / 255, compressed)


def test_colours_stay_in_their_channels() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0] = 0.8
    assert torch.allclose(compress_images(images, 90).mean((0, 2, 3)), torch.tensor([0.8, 0.0, 0.0]), atol=0.02)


def test_modes() -> None:
    assert compress_image(Image.new("L", (9, 7), 30), 50).mode == "L"
    assert compress_image(Image.new("RGBA", (9, 7)), 50).size == (9, 7)
    assert compress_images(torch.zeros(0, 3, 8, 8), 50).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("quality", [0, 96, 5.0, True, None])
def test_qualities(quality: object) -> None:
    with pytest.raises(NabnError, match="JPEG quality must be"):
        compress_images(torch.zeros(1, 3, 8, 8), quality)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8)])
def test_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(NabnError, match="images to compress must be"):
        compress_images(torch.zeros(shape), 50)
