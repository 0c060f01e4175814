from __future__ import annotations

import operator
import os

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint_to_model, load_checkpoint

import aihwkit_nabn as nabn
import aihwkit_nabn.openmmlab
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.openmmlab.checkpoints import chip_record, fit_checkpoint, restore_chip


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


def test_weights_are_put_where_mmengine_takes_them_from():
    model, other = net(), torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    for prefix in ("net.", "model._orig_mod.", "_orig_mod.", "module.model."):
        for wrapper in ("state_dict", "model", None):
            content = {f"{prefix}{name}": tensor for name, tensor in state.items()}
            content = content if wrapper is None else {wrapper: content, "epoch": 3}
            assert fit_checkpoint(model, content) == []
            _load_checkpoint_to_model(other, content, logger="silent")
            assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_what_mmengine_finds_by_itself_stays_unless_another_is_asked_for():
    model = net()
    averaged = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    trained = {f"module.{name}": tensor + 2 for name, tensor in model.state_dict().items()}
    content = {"meta": {}, "message_hub": {}, "state_dict": averaged, "ema_state_dict": {**trained, "steps": 3}}
    kept = dict(content)
    assert fit_checkpoint(model, content) == [
        "the checkpoint: state_dict was taken; --take NAME takes ema_state_dict.module"
    ]
    assert content == kept
    fit_checkpoint(model, content, take="ema")
    assert torch.equal(content["state_dict"]["0.weight"], averaged["0.weight"])
    content = dict(kept)
    fit_checkpoint(model, content, take="model")
    assert torch.equal(content["state_dict"]["0.weight"], trained["module.0.weight"])


def test_a_checkpoint_of_another_network_is_refused():
    with pytest.raises(NabnError, match="is of another network: it holds .*far.weight"):
        fit_checkpoint(net(), {"state_dict": {"far.weight": torch.zeros(1)}})
    with pytest.raises(NabnError, match="is of another network: no tensor has the shape"):
        fit_checkpoint(net(), {"model": {f"a.{name}": torch.zeros(9) for name in net().state_dict()}})
