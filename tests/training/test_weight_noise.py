from __future__ import annotations

import copy

import pytest
import torch
from aihwkit.optim import AnalogOptimizer
from torch import nn
from torch.nn import functional as F

from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.training import TrainingNoise
from aihwkit_nabn.training.settings import training_config
from aihwkit_nabn.training.weight_noise import WeightNoise
from tests.networks import classifier, labelled_batches


def net() -> nn.Sequential:
    more = lambda: [nn.Conv2d(6, 6, 3, bias=False, groups=3), nn.ReLU()]  # noqa: E731
    return classifier(2, n_out=3, padding=1, more=more)


@pytest.mark.parametrize("preset", ["gaussian:sigma=0.1", "pcm"])
@pytest.mark.parametrize("noise", [TrainingNoise(std=0.1), TrainingNoise(std=0.2, kind="multiplicative")])
def test_the_same_as_aihwkits_tiles_do(preset: str, noise: TrainingNoise) -> None:
    config = training_config(parse_preset(preset), noise, 2.0)
    digital, analog = net(), convert_to_noise_aware(net(), config).train()
    columnwise = config.mapping.weight_scaling_columnwise
    assert columnwise is (preset == "pcm")
    weights = WeightNoise(digital, noise, clip_sigma=2.0, columnwise=columnwise)
    assert list(weights.maps) == ["0", "3", "6"]
    stepper = AnalogOptimizer(torch.optim.SGD, analog.parameters(), lr=0.05)
    stepper.regroup_param_groups(analog)
    plain = torch.optim.SGD(digital.parameters(), lr=0.05)
    digital.train()
    for step, (images, labels) in enumerate(labelled_batches()):
        torch.manual_seed(step)
        stepper.zero_grad()
        F.cross_entropy(analog(images), labels).backward()
        stepper.step()
        torch.manual_seed(step)
        plain.zero_grad()
        weights.add()
        F.cross_entropy(digital(images), labels).backward()
        weights.remove()
        plain.step()
        weights.clip()
    analog.eval(), digital.eval()
    for name in weights.maps:
        assert torch.allclose(digital.get_submodule(name).weight, analog.get_submodule(name).weight, atol=2e-5), name
    assert torch.allclose(digital(images), analog(images), atol=1e-4)
    assert not torch.allclose(digital[0].weight, net()[0].weight, atol=1e-3)


def test_noise_goes_out_bit_for_bit_and_is_drawn_once() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    weights = WeightNoise(model, TrainingNoise(std=0.1))
    weights.add(torch.Generator().manual_seed(3))
    noisy = copy.deepcopy(model.state_dict())
    weights.add(torch.Generator().manual_seed(4))  # noise is in already
    assert torch.equal(model[0].weight, noisy["0.weight"]) and not torch.equal(noisy["0.weight"], before["0.weight"])
    assert torch.equal(noisy["1.weight"], before["1.weight"])
    weights.remove()
    weights.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_attention_has_noise_in_each_projection_and_frozen_weights_are_not_clipped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(64, 2), nn.Linear(64, 64))
    model[1].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].in_proj_weight[:64] *= 10
    before = copy.deepcopy(model.state_dict())
    weights = WeightNoise(model, TrainingNoise(std=0.1), clip_sigma=0.5)
    weights.add()
    change = (model[0].in_proj_weight - before["0.in_proj_weight"]).detach()
    for part, old in zip(change.chunk(3), before["0.in_proj_weight"].chunk(3), strict=True):
        assert float(part.std()) == pytest.approx(0.1 * float(old.abs().max()), rel=0.05)
    weights.remove()
    weights.clip()
    assert torch.equal(model[1].weight, before["1.weight"])
    clipped = model[0].in_proj_weight.chunk(3)[1]
    assert float(clipped.abs().max()) == pytest.approx(0.5 * float(before["0.in_proj_weight"].chunk(3)[1].std()))
