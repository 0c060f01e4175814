from __future__ import annotations

import pytest
import torch

import aihwkit_nabn as nabn
from aihwkit_nabn.nn.inference_mode import outside_inference_mode


def test_the_block():
    with outside_inference_mode():
        assert torch.is_grad_enabled()
    with torch.no_grad(), outside_inference_mode():
        assert not torch.is_grad_enabled()
    with torch.inference_mode(), outside_inference_mode():
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert not torch.ones(1).is_inference()


@pytest.mark.parametrize("method", ["population", "common_mode", "low_rank", "auto", "distill"])
def test_chips_made_in_inference_mode_are_chips_like_others(method, net, batches, images, tmp_path):
    def make():
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset()), seed=1)
        options = {"steps": 2} if method == "distill" else {}
        report = nabn.calibrate(chip, batches, method, reference=net, **options)
        nabn.fold_calibration(chip).undo()
        nabn.drift_chip(chip, "1d")
        loaded = nabn.load_chip(net, nabn.save_chip(chip, tmp_path / "chip.safetensors"))
        return chip, report, loaded, chip(images(3, 9))

    with torch.inference_mode():
        chip, report, loaded, output = make()
    with torch.no_grad():
        assert torch.equal(output, make()[-1])
    for model in (chip, loaded):
        model(images(3, 9)).sum().backward()
        nabn.drift_chip(model, "1y")
        nabn.calibrate(model, batches, "distill", reference=net, steps=2)
    with torch.inference_mode():
        report.undo()
    chip(images(3, 9)).sum().backward()
    nabn.program_chip(chip, seed=2)
