from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.jpeg import CompressJPEG, compress_inputs


def test_images_are_compressed_in_their_own_channel_order() -> None:
    image = np.zeros((16, 24, 3), dtype=np.uint8)
    image[..., 2] = np.linspace(100, 250, 24).astype(np.uint8)  # red, in BGR
    image[4:9, 3:7] = 200
    left = TRANSFORMS.build(dict(type="CompressJPEG", quality=40))({"img": image.copy(), "other": 1})
    assert left["other"] == 1 and left["img"].shape == image.shape and left["img"].dtype == np.uint8
    difference = np.abs(left["img"].astype(int) - image)
    assert 0 < difference.mean() < 25 and left["img"][..., 2].mean() > left["img"][..., 0].mean() + 50
    assert CompressJPEG(40)({"img": image[..., 0].copy()})["img"].shape == (16, 24)


def test_what_cannot_be() -> None:
    with pytest.raises(NabnError, match="JPEG quality must be"):
        CompressJPEG(0)
    with pytest.raises(NabnError, match="needs images of 8 bits"):
        CompressJPEG(50)({"img": np.zeros((4, 4, 3), np.float32)})


def test_every_pipeline_of_test_and_train_gets_it_behind_the_loader(detector) -> None:
    cfg = detector.cfg()
    changed = compress_inputs(cfg, 30)
    for field in ("test_dataloader", "train_dataloader"):
        steps = [step["type"] for step in changed[field].dataset.pipeline]
        assert steps[:2] == ["LoadImageFromFile", "CompressJPEG"] and steps.count("CompressJPEG") == 1
        assert "CompressJPEG" not in [step["type"] for step in cfg[field].dataset.pipeline]
    inner = {"type": "CocoDataset", "pipeline": [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}]}
    wrapped = Config({"test_dataloader": {"dataset": {"type": "RepeatDataset", "times": 2, "dataset": inner}}})
    steps = compress_inputs(wrapped, 30).test_dataloader.dataset.dataset.pipeline
    assert steps[1] == {"type": "CompressJPEG", "quality": 30}


def test_a_pipeline_without_images() -> None:
    with pytest.raises(NabnError, match="no place for JPEG"):
        compress_inputs(Config({"test_dataloader": {"dataset": {"type": "X", "pipeline": [{"type": "Y"}]}}}), 30)
