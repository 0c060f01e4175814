from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COLOURS = {"circle": (220, 40, 40), "square": (40, 200, 60), "triangle": (50, 70, 230), "bar": (230, 210, 40)}


def _shape(name: str, place: int) -> Image.Image:
    image = Image.new("RGB", (40, 36), (20 + 5 * place, 30, 30))
    draw = ImageDraw.Draw(image)
    x = 4 + 3 * place
    box = (x, 6, x + 18, 24)
    match name:
        case "circle":
            draw.ellipse(box, fill=COLOURS[name])
        case "square":
            draw.rectangle(box, fill=COLOURS[name])
        case "triangle":
            draw.polygon([(x, 24), (x + 18, 24), (x + 9, 6)], fill=COLOURS[name])
        case _:
            draw.rectangle((x, 12, x + 18, 16), fill=COLOURS["bar"])
    return image


@pytest.fixture
def shapes_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that draws an image folder: one coloured shape per class, at different places."""

    def draw(classes: tuple[str, ...] = ("circle", "square", "triangle"), count: int = 4) -> Path:
        root = tmp_path / "shapes"
        for part in ("train", "val"):
            for name in classes:
                folder = root / part / name
                folder.mkdir(parents=True)
                for place in range(count):
                    _shape(name, place).save(folder / f"{place}.png")
        return root

    return draw
