from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.openmmlab.batches import (
    CalibrationImages,
    TwinImages,
    calibration_forward,
    calibration_images,
    reference_forward,
)
from aihwkit_nabn.openmmlab.jpeg import CompressJPEG, compress_inputs
from aihwkit_nabn.openmmlab.settings import build_methods


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


@pytest.mark.parametrize("name", ["plain", "augmented"])
def test_the_reference_sees_the_clean_twin_of_what_the_chip_sees(detector, name: str) -> None:
    clean, compressed = detector.cfg(), compress_inputs(detector.cfg(), 10)
    twins = list(calibration_images(compressed, name, 6, 4, 1, ["CompressJPEG"]))
    assert [len(twin.chip["inputs"]) for twin in twins] == [4, 2]
    for cfg, mine in ((clean, "reference"), (compressed, "chip")):
        for twin, alone in zip(twins, CalibrationImages(cfg, name, 6, 4, 1), strict=True):
            pairs = zip(getattr(twin, mine)["inputs"], alone["inputs"], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "flipped and cropped alike, too"
    assert not torch.equal(twins[0].reference["inputs"][0], twins[0].chip["inputs"][0])


def test_paired_with_a_clean_reference_aligns_the_chip_with_clean_images(detector) -> None:
    cfg = compress_inputs(detector.cfg(), 10)
    found = build_methods([dict(method="paired", reference_skips="CompressJPEG", shrink=0.0)], None)
    name, skips = found.sets[found.specs[0].batches]
    images = calibration_images(cfg, name, 4, 4, 0, skips)
    assert isinstance(images, TwinImages)
    model = detector.model()
    model.load_state_dict(torch.load(detector.checkpoint, weights_only=True)["state_dict"])
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.05))
    nabn.program_chip(analog, 3)
    report = nabn.calibrate(
        analog,
        images,
        method="paired",
        reference=model,
        forward_fn=calibration_forward,
        reference_forward_fn=reference_forward,
        progress=False,
        **found.specs[0].options,
    )
    assert report.n_samples == 4
    name = next(iter(named_analog_layers(analog)))
    seen: list[torch.Tensor] = []
    for network, forward in ((model, reference_forward), (analog, calibration_forward)):
        hook = network.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
        with torch.no_grad():
            for twin in images:
                forward(network, twin)
        hook.remove()
    target, calibrated = (output.mean((0, 2, 3)) for output in seen)
    spread = seen[0].std((0, 2, 3))
    assert ((calibrated - target) / spread).abs().max() < 1e-3, "of the first layer, whose input is the images"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(method="population", reference_skips="CompressJPEG"), "not for 'population'"),
        (dict(method="paired", reference_skips=3), "reference_skips must be a type of transform"),
        (dict(method="paired", reference_skips=["two words"]), "reference_skips must be a type of transform"),
    ],
)
def test_what_cannot_be_skipped(method: dict, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        build_methods([method], None)


def test_a_transform_that_is_not_there_is_named(detector) -> None:
    with pytest.raises(NabnError, match="'CompressJPEG' is not a transform .* which has LoadImageFromFile, Resize"):
        calibration_images(detector.cfg(), "plain", 4, 4, 0, ["CompressJPEG"])
