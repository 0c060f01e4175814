from __future__ import annotations

import pytest
import torch
from aihwkit.nn import AnalogConv2d, AnalogLinear
from aihwkit.nn.conversion import _DEFAULT_CONVERSION_MAP, convert_to_analog, convert_to_digital
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import NoiseAwareBatchNorm2d, NoiseAwareConv2d, NoiseAwareLinear


@pytest.fixture
def plain():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten()
    return nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(60, 2)}).eval()


@pytest.fixture
def registered():
    before = dict(_DEFAULT_CONVERSION_MAP)
    nabn.register()
    yield
    nabn.unregister()
    assert before == _DEFAULT_CONVERSION_MAP


def run(model, x):
    return model["head"](model["body"](x))


@pytest.mark.usefixtures("registered")
def test_aihwkits_conversion_gives_our_layers_and_back(plain, images, relative):
    nabn.register()  # twice is harmless
    analog = convert_to_analog(plain, nabn.presets.GaussianWeightNoisePreset(sigma=0.1)).eval()
    body = analog["body"]
    assert type(body[0]) is NoiseAwareConv2d and type(body[1]) is NoiseAwareBatchNorm2d
    assert type(body[3]) is NoiseAwareConv2d and type(analog["head"]) is NoiseAwareLinear
    x = images(3)
    expected = run(plain, x)
    assert relative(run(analog, x), expected) < 1e-5
    nabn.program_chip(analog, seed=1)
    nabn.calibrate(analog, [x], reference=plain, forward_fn=run)
    noisy = run(analog, x)
    digital = convert_to_digital(analog)
    assert not any(isinstance(m, (NoiseAwareConv2d, NoiseAwareBatchNorm2d)) for m in digital.modules())
    assert relative(run(digital, x), noisy) < 1e-5


@pytest.mark.usefixtures("registered")
def test_a_single_layer_and_a_sync_batchnorm():
    layer = convert_to_analog(nn.Linear(4, 2), nabn.presets.GaussianWeightNoisePreset())
    assert type(layer) is NoiseAwareLinear
    model = convert_to_analog(
        nn.Sequential(nn.Linear(4, 2), nn.SyncBatchNorm(2)), nabn.presets.GaussianWeightNoisePreset()
    )
    assert isinstance(model[1], nabn.nn.NoiseAwareBatchNorm)


def test_unregistered_aihwkit_is_as_it_was(plain):
    nabn.register()
    nabn.unregister()
    nabn.unregister()
    analog = convert_to_analog(plain["head"], nabn.presets.GaussianWeightNoisePreset())
    assert type(analog) is AnalogLinear
    assert nn.BatchNorm2d not in _DEFAULT_CONVERSION_MAP
    assert _DEFAULT_CONVERSION_MAP[nn.Conv2d] is AnalogConv2d
