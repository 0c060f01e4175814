"""Chips go through pickle, `torch.save`, copies and processes, whatever their settings, and stay what they are."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.presets import StandardHWATrainingPreset
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip import chip_state
from aihwkit_nabn.nn import named_analog_layers
from aihwkit_nabn.simulator import parse_preset
from tests.built_in import NOISE_NAMES
from tests.chips import chip_of
from tests.tensors import equal, tensors_of

pytestmark = pytest.mark.filterwarnings("ignore:.*input range:UserWarning")

PRESETS = (*sorted(NOISE_NAMES), "crossbar", "pcm+stuck:p_off=0.01", "gaussian:out_noise=0.1")
IMAGES = torch.randn(6, 3, 5, 4, generator=torch.Generator().manual_seed(2))


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "an old protocol": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": through_a_file,
    "deepcopy": copy.deepcopy,
    "twice": lambda model: through_a_file(copy.deepcopy(model)),
}


def digital() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def make_chip(preset: str) -> nn.Module:
    model = digital().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if preset == "aihwkit":
            model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(36, 5))
            standard = StandardHWATrainingPreset()  # of which the torch tile takes this much
            config = TorchInferenceRPUConfig(mapping=standard.mapping, noise_model=standard.noise_model)
            return nabn.program_chip(convert_to_analog(model, config).eval(), 1, "1d")
        chip = chip_of(model, preset, 1)
    nabn.calibrate(chip, [IMAGES], "common_mode", reference=model, progress=False)
    return chip


def answers(chip: nn.Module) -> Tensor:
    nabn.set_read_noise_seed(chip, 3)
    with torch.no_grad():
        return torch.cat([chip(IMAGES), chip(IMAGES)])


def gradients(chip: nn.Module) -> dict[str, Tensor]:
    """Of a copy would be another thing: the model itself is put into training mode and back."""
    chip.train()
    chip.zero_grad()
    torch.manual_seed(4)
    nabn.set_read_noise_seed(chip, 3)
    chip(IMAGES).square().sum().backward()
    chip.eval()
    return {name: p.grad.clone() for name, p in chip.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", [*PRESETS, "aihwkit"])
def test_a_chip_stays_what_it_is(preset: str, way: str) -> None:
    chip = make_chip(preset)
    answers(chip)
    twin = WAYS[way](chip)
    assert equal(tensors_of(twin), tensors_of(chip)) and chip_state(twin) == chip_state(chip)
    assert torch.equal(answers(twin), answers(chip))
    for model in (chip, twin):
        nabn.drift_chip(model, "2d")
    assert torch.equal(answers(twin), answers(chip))
    for model in (chip, twin):
        nabn.program_chip(model, 9)
    assert torch.equal(answers(twin), answers(chip))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", ["gaussian", "pcm", "aihwkit"])
def test_it_trains_as_it_would_have(preset: str, way: str) -> None:
    """The gradient of the weights on a tile leaves out the digital scales."""
    chip = make_chip(preset)
    twin = WAYS[way](chip)
    found, expected = gradients(twin), gradients(chip)
    assert expected and equal(found, expected)
    tiles = [[t for layer in named_analog_layers(m).values() for t in layer.analog_tiles()] for m in (chip, twin)]
    for ours, theirs in zip(*tiles, strict=True):
        for tile in (ours, theirs):  # other weights take the hook away
            tile.set_weights(torch.full((tile.out_size, tile.in_size), 0.3))
            assert len(tile.tile.weight._backward_hooks or {}) <= 1
    assert equal(gradients(twin), gradients(chip))


@pytest.mark.parametrize("preset", ["gaussian", "pcm"])
def test_so_does_a_model_that_is_not_programmed(preset: str) -> None:
    analog = nabn.convert_to_noise_aware(digital().eval(), parse_preset(preset))
    expected = gradients(copy.deepcopy(analog))
    for way in WAYS.values():
        assert equal(gradients(way(analog)), expected)
    assert equal(gradients(analog), expected)


@pytest.mark.slow
def test_a_chip_goes_to_another_process() -> None:
    chip = make_chip("crossbar")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(answers, (chip,))
    assert torch.equal(found, answers(chip))


def test_frozen_weights_are_programmed_and_train_later_as_they_should():
    torch.manual_seed(0)
    chips = []
    for frozen in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3))
        net[0].weight.requires_grad_(not frozen)
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset()), seed=0)
        for parameter in chip.parameters():
            parameter.requires_grad_(True)
        chip(torch.ones(2, 4)).sum().backward()
        chips.append(next(iter(chip[0].analog_tiles())).tile.weight)
    assert torch.equal(chips[0].grad, chips[1].grad)
