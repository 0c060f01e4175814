"""Weights lie on every tile row by row, as they may in the digital layer: copies are equal to the last bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import named_analog_layers
from tests.chips import tiled

pytestmark = pytest.mark.filterwarnings("ignore:.*input range:UserWarning")


def turned(layer: Any) -> nn.Module:
    """The same layer, its weights laid out column by column."""
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    return layer


LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "linear, turned": lambda: turned(nn.Linear(7, 5)),
    "one weight": lambda: nn.Linear(1, 1),
    "wide, turned": lambda: turned(nn.Linear(45, 38)),
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "1x1, turned": lambda: turned(nn.Conv2d(4, 6, 1)),
    "channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "1-d": lambda: nn.Conv1d(4, 6, 3),
    "3-d": lambda: nn.Conv3d(2, 3, 2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed 1x1": lambda: nn.ConvTranspose2d(4, 6, 1),
    "transposed 1x1, grouped": lambda: nn.ConvTranspose2d(4, 6, 1, groups=2),
    "transposed 1x1, wide": lambda: nn.ConvTranspose2d(45, 38, 1),
    "transposed 1-d": lambda: nn.ConvTranspose1d(4, 6, 1),
    "transposed 3-d": lambda: nn.ConvTranspose3d(4, 6, 1),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
}
PRESETS = ("pcm", "gaussian", "hermes", "gaussian:out_bits=8,out_noise=0.01,w_noise=0.02")


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    if isinstance(layer, nn.Linear):
        return nn.Sequential(layer).eval(), torch.randn(3, layer.in_features)
    if isinstance(layer, nn.TransformerEncoderLayer):
        return nn.Sequential(layer).eval(), torch.randn(2, 4, 8)
    return nn.Sequential(layer).eval(), torch.randn(2, layer.in_channels, *[5] * len(layer.kernel_size))


def converted(model: nn.Module, preset: str) -> nn.Module:
    return nabn.convert_to_noise_aware(model, tiled(preset, 40, 30))


def tiles(model: nn.Module) -> list[Any]:
    return [tile for layer in named_analog_layers(model).values() for tile in layer.analog_tiles()]


def outputs(chip: nn.Module, x: Tensor) -> Tensor:
    nabn.set_read_noise_seed(chip, 2)
    with torch.no_grad():
        return chip(x)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LAYERS)
def test_copies_are_equal_to_the_last_bit(name: str, preset: str, tmp_path: Path) -> None:
    model, x = made(name)
    chip = nabn.program_chip(converted(model, preset), 1, "1h")
    assert all(tile.tile.weight.is_contiguous() for tile in tiles(chip))
    expected = outputs(chip, x)
    copies = {
        "file": nabn.load_chip(model, nabn.save_chip(chip, tmp_path / "chip")),
        "copy": copy.deepcopy(chip),
        "state": converted(model, preset),
    }
    copies["state"].load_state_dict(chip.state_dict())
    for way, twin in copies.items():
        assert torch.equal(outputs(twin, x), expected), way
    for seconds in ("2h", "1y"):
        nabn.drift_chip(chip, seconds)
        for way in ("file", "copy"):
            assert torch.equal(outputs(nabn.drift_chip(copies[way], seconds), x), outputs(chip, x)), way
    nabn.program_chip(chip, 7, "1d")
    for way, twin in copies.items():
        if way != "state":  # a state dict holds no targets
            assert torch.equal(outputs(nabn.program_chip(twin, 7, "1d"), x), outputs(chip, x)), way


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["linear", "1x1", "wide, turned"])
def test_a_chip_does_not_depend_on_how_the_digital_weights_lie(name: str, preset: str) -> None:
    model, x = made(name)
    other = copy.deepcopy(model)
    turned(other[0])
    assert model[0].weight.stride() != other[0].weight.stride() or name == "wide, turned"
    model[0].weight.data = model[0].weight.data.contiguous()
    chips = [nabn.program_chip(converted(each, preset), 1, "1h") for each in (model, other)]
    assert torch.equal(outputs(chips[0], x), outputs(chips[1], x))


class Turns(BaseNoiseModel):
    """Somebody's noise model, whose weights come out column by column."""

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Any]]:
        return (weights.T + 0.1 * torch.randn(weights.T.shape)).contiguous().T, [None]

    def apply_drift_noise(self, weights: Tensor, parameters: Any, t_inference: float) -> Tensor:
        assert weights.is_contiguous()
        return (0.9 * weights.T).contiguous().T


@pytest.mark.parametrize("ours", [True, False])
def test_whatever_a_noise_model_returns(ours: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(turned(nn.Linear(7, 5))).eval(), torch.randn(3, 7)
    config = TorchInferenceRPUConfig(noise_model=Turns(), drift_compensation=None)
    config.forward.is_perfect = True
    chip = nabn.convert_to_noise_aware(model, config) if ours else convert_to_analog(model, config).eval()
    nabn.program_chip(chip, 1, "1h")
    (tile,) = tiles(chip)
    held = (tile.tile.weight, tile.programmed_weights, tile.reference_combined_weights)
    assert all(tensor.is_contiguous() for tensor in held)
    if ours:
        twin = nabn.load_chip(model, nabn.save_chip(chip, tmp_path / "chip"))
        assert torch.equal(outputs(twin, x), outputs(chip, x))
