"""Torchvision's windowed attention with its projections on tiles."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import named_analog_layers, split_attention

PRESET = nabn.presets.GaussianWeightNoisePreset
KINDS = {"v1": ShiftedWindowAttention, "v2": ShiftedWindowAttentionV2}
BLOCKS = {"v1": SwinTransformerBlock, "v2": SwinTransformerBlockV2}


def attention(kind, **options):
    torch.manual_seed(0)
    module = KINDS[kind](12, [4, 3], options.pop("shift_size", [2, 1]), 3, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # also the keys' bias, which the second version must not take
            parameter.normal_(0.0, 0.5)
    return module


def small_swin(kind):
    torch.manual_seed(0)
    return SwinTransformer(
        [2, 2], 8, [2, 2], [2, 2], window_size=[3, 3], num_classes=5, stochastic_depth_prob=0.0, block=BLOCKS[kind]
    ).eval()


@pytest.mark.parametrize("size", [(8, 9), (7, 5), (3, 3), (4, 3)])
@pytest.mark.parametrize("options", [{}, {"shift_size": [0, 0]}, {"qkv_bias": False}, {"proj_bias": False}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torchvisions(kind, options, size):
    module = attention(kind, **options)
    x = torch.randn(2, *size, 12)
    analog = nabn.convert_to_noise_aware(module, PRESET(sigma=0.0))
    assert isinstance(analog, KINDS[kind]) and {"qkv", "proj"} <= set(named_analog_layers(analog))
    torch.testing.assert_close(analog(x), module(x), rtol=1e-5, atol=1e-6)
    assert type(module) is KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_its_projections(kind):
    module = attention(kind)
    x, own = torch.randn(2, 8, 9, 12), type(module)
    expected, calls = module(x), []
    with split_attention(module) as split:
        handles = [getattr(split, name).register_forward_hook(lambda *_: calls.append(1)) for name in ("qkv", "proj")]
        torch.testing.assert_close(split(x), expected)
    assert len(calls) == 2 and type(module) is own
    for handle in handles:
        handle.remove()
    with pytest.raises(ValueError, match="stop"), split_attention(module):
        raise ValueError("stop")
    assert type(module) is own and torch.equal(module(x), expected)


@pytest.mark.parametrize("method", ["paired", "common_mode", "low_rank", "auto", "distill"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_a_network_is_calibrated(kind, method, recwarn):
    model = small_swin(kind)
    batches = list(torch.randn(24, 3, 24, 24).split(8))
    options = {"steps": 4} if method == "distill" else {}
    errors = torch.zeros(2)
    for seed in range(3):  # of one chip alone the gain is a matter of luck
        chip = nabn.program_chip(nabn.convert_to_noise_aware(model, PRESET(sigma=0.1)), seed=seed)
        with torch.no_grad():
            reference, before = model(batches[0]), chip(batches[0])
            report = nabn.calibrate(chip, batches, method, reference=model, **options)
            after = chip(batches[0])
            position_bias = {name for name in named_analog_layers(chip) if "cpb_mlp" in name}  # depend on no image
            seen = {layer.name for layer in report.layers} | position_bias
            assert seen == set(named_analog_layers(chip))
            errors += torch.stack([(out - reference).square().mean() for out in (after, before)])
            nabn.fold_calibration(chip)
            if method != "common_mode":
                torch.testing.assert_close(chip(batches[0]), after, rtol=1e-3, atol=1e-4)
    assert errors[0] < 0.8 * errors[1]
    assert not [w for w in recwarn if "instead of calling" in str(w.message)]


def test_a_chip_of_a_swin_is_saved_copied_and_loaded(tmp_path):
    model, x = small_swin("v2"), torch.randn(2, 3, 24, 24)
    chip = nabn.convert_to_noise_aware(model, PRESET(sigma=0.1, inp_bits=8, out_bits=8))
    nabn.calibrate_input_ranges(chip, [x])
    nabn.program_chip(chip, seed=3)
    nabn.calibrate(chip, [x], reference=model)
    with torch.no_grad():
        expected = chip(x)
        nabn.save_chip(chip, tmp_path / "chip.safetensors")
        assert torch.equal(nabn.load_chip(model, tmp_path / "chip.safetensors")(x), expected)
        assert torch.equal(copy.deepcopy(chip)(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_torchvisions_networks(name):
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, 64, 64)
    chip = nabn.convert_to_noise_aware(model, PRESET(sigma=0.0))
    with torch.no_grad():
        torch.testing.assert_close(chip(x), model(x), rtol=1e-5, atol=1e-5)
