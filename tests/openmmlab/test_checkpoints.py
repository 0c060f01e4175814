from __future__ import annotations

import operator
import os

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import load_checkpoint

import aihwkit_nabn as nabn
import aihwkit_nabn.openmmlab
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.checkpoints import chip_record, restore_chip


class Opens:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("true",)


class Looks:
    """Looks an attribute up when it is unpickled."""

    def __reduce__(self):
        return getattr, (torch.Tensor, "numpy")


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()


def test_a_training_log_is_read_with_safe_loading(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(
        {"message_hub": {"log_scalars": {"loss": history}}, "state_dict": net().state_dict()}, tmp_path / "a.pth"
    )
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["message_hub"]["log_scalars"]["loss"].mean() == 1.5


@pytest.mark.parametrize("thing", [Opens(), Looks(), operator.itemgetter(0)])
def test_what_could_run_code_is_refused_not_loaded_unsafely(tmp_path, thing):
    torch.save({"meta": thing, "state_dict": net().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(NabnError, match=r"a\.pth is damaged or holds more than tensors"):
        load_checkpoint(net(), str(tmp_path / "a.pth"))


def calibrated_chip(seed: int = 1) -> torch.nn.Module:
    model = net()
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    nabn.program_chip(analog, seed)
    nabn.calibrate(analog, [torch.randn(8, 3, 6, 6)], "paired", reference=model)
    return analog


def test_a_restored_chip_gives_the_same_bits(tmp_path):
    chip = calibrated_chip()
    torch.save(chip_record(chip, "a"), tmp_path / "chip.pth")
    record = torch.load(tmp_path / "chip.pth", weights_only=True)
    again = nabn.convert_to_noise_aware(net(), nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    nabn.program_chip(again, 1)
    assert not restore_chip(again, record, "b")
    assert restore_chip(again, record, "a")
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), chip(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1, got 2"),
        ({"weights": None}, "tensors by name"),
        ({"weights": {}}, "other layers"),
        ({"calibration": {"0.scale": torch.ones(3), "0.offset": torch.ones(3)}}, "does not have 4 channels"),
        ({"calibration": {"9.scale": torch.ones(4), "9.offset": torch.ones(4)}}, "another network"),
    ],
)
def test_a_record_that_does_not_fit_changes_nothing(change, message):
    chip = calibrated_chip()
    record = {**chip_record(chip, "a"), **change}
    before = chip[0].alignment.scale.clone()
    with pytest.raises(NabnError, match=message):
        restore_chip(chip, record, "a")
    assert torch.equal(chip[0].alignment.scale, before)


def test_another_chips_weights_are_noticed():
    record = chip_record(calibrated_chip(1), "a")
    with pytest.raises(NabnError, match="'0': the chip programmed now is not the one"):
        restore_chip(calibrated_chip(2), record, "a")
