"""``digits``: the network and the handwritten digits that come with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from aihwkit_nabn.data.classification import ImageSet
from aihwkit_nabn.data.digits import load_demo_model, load_digits, shift_images
from aihwkit_nabn.data.shapes import draw_shapes
from aihwkit_nabn.sweeps.models._base import MODELS, Bench, MemoryImages, ModelKind

_OTHER_IMAGES = 512


def load(name: str, options: dict[str, Any]) -> Bench:
    """Return the demo network; the other data set is drawn shapes in grey, 8 x 8 pixels."""

    def images(data: ImageSet) -> MemoryImages:
        return MemoryImages(data=data, normalise=lambda x: x, augment=shift_images)

    return Bench(
        model=load_demo_model(),
        train=images(load_digits("train")),
        test=images(load_digits("test")),
        other=images(_grey_shapes()),
        other_name="drawn shapes",
    )


def _grey_shapes() -> ImageSet:
    drawn = [draw_shapes("train", index) for index in range(_OTHER_IMAGES)]
    small = [
        np.asarray(Image.fromarray(image).convert("L").resize((8, 8), Image.Resampling.BOX)) for image, *_ in drawn
    ]
    labels = torch.tensor([shapes[0]["category"] - 1 if shapes else 0 for *_, shapes in drawn])
    return ImageSet(images=torch.from_numpy(np.stack(small)).float()[:, None] / 255.0, labels=labels)


MODELS.register("digits")(ModelKind(load=load, options={}))
