"""Data and networks that several files measure on, each written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.workloads.pretrained import ANIMALS, PIXELS, SHAPES, save
from tests.workloads.scenes import draw_coco, draw_masks


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders whose order is not that of the labels, images of two shapes."""
    root = tmp_path_factory.mktemp("classes")
    draws = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 5)):
        for name in ("square 2", "circle"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                values = draws.integers(0, 256, (40, 50 + 10 * (number % 2), 3), dtype=np.uint8)
                Image.fromarray(values).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of tiny networks as transformers writes them."""
    root = tmp_path_factory.mktemp("saved")
    labels = {"detr": SHAPES, "rt_detr": SHAPES, "segformer": PIXELS}

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            save(root / name, name, labels.get(name, ANIMALS))
        return root / name

    return folder
