"""What is kept in a state dict of an analog model; tiles go through aihwkit, which pickles its configuration."""

from __future__ import annotations

import io

import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from tests.chips import tiled

STORED = [name for name in CALIBRATION_METHODS.names() if name != "batch"]


def fresh(net):
    return nabn.convert_to_noise_aware(net, tiled("gaussian:sigma=0.1"))


def through_a_file(state, **options):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


@pytest.mark.parametrize("method", STORED)
def test_a_calibrated_chip_survives_its_state_dict(chip, net, batches, images, method):
    nabn.calibrate(chip, batches, method, reference=net)
    nabn.freeze_calibration(chip)
    other = fresh(net)
    result = other.load_state_dict(through_a_file(chip.state_dict(), weights_only=False))
    assert not result.missing_keys and not result.unexpected_keys
    x = images(3, 9)
    assert torch.equal(other(x), chip(x))
    with nabn.calibration_disabled(chip), nabn.calibration_disabled(other):
        assert torch.equal(other(x), chip(x))


def test_the_calibration_alone_is_plain_tensors(chip, net, batches, images):
    nabn.calibrate(chip, batches, "distill", reference=net, steps=2)
    state = {name: value for name, value in chip.state_dict().items() if "analog_tile_state" not in name}
    loaded = through_a_file(state, weights_only=True)
    assert loaded.keys() == state.keys()
    other = nabn.program_chip(fresh(net), seed=3)
    missing = other.load_state_dict(loaded, strict=False).missing_keys
    assert all("analog_tile_state" in name for name in missing)
    assert torch.equal(other(images(3, 9)), chip(images(3, 9)))


def test_tiles_of_aihwkit_refuse_safe_loading(chip):
    with pytest.raises(Exception, match="[Ww]eights.only"):
        through_a_file(chip.state_dict(), weights_only=True)


def test_an_uncalibrated_state_takes_the_calibration_away(chip, net, batches, images):
    state = {name: value for name, value in chip.state_dict().items()}
    before = chip(images(3, 9))
    nabn.calibrate(chip, batches, reference=net)
    nabn.calibrate(chip, batches, "population")
    chip.load_state_dict(state)
    assert torch.equal(chip(images(3, 9)), before)
