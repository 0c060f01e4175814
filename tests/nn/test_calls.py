"""Layers and BatchNorms called by keyword, by their `forward`, or as usual: the same chip, the same calibration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.nn.calls import first_argument, unwatched, watched

WAYS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "plain": lambda layer, x: layer(x),
    "keyword": lambda layer, x: layer(input=x),
    "forward": lambda layer, x: layer.forward(x),
    "forward by keyword": lambda layer, x: layer.forward(input=x),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.up, self.row, self.head = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv1d(4, 5, 3), nn.Linear(5, 3)
        self.way = "plain"

    def forward(self, x: Tensor) -> Tensor:
        call = WAYS[self.way]
        x = call(self.up, call(self.norm, call(self.conv, x)).relu())
        return call(self.head, call(self.row, x.flatten(2)).mean(2))


@pytest.mark.parametrize("method", ["population", "paired", "common_mode"])
@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_the_way_of_calling_changes_nothing(way, method, settle, images) -> None:
    torch.manual_seed(3)
    net = settle(Net())
    x = images(6)
    outputs = {}
    for name in ("plain", way):
        net.way = name
        rpu = nabn.presets.GaussianWeightNoisePreset(sigma=0.1, inp_bits=8, out_bits=8)
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, rpu), seed=5)
        ranges = nabn.calibrate_input_ranges(chip, [x])
        nabn.calibrate(chip, [x], method=method, reference=net)
        outputs[name] = (ranges, chip(x))
    assert outputs["plain"][0] == outputs[way][0] and len(outputs[way][0]) == 4
    assert torch.equal(outputs["plain"][1], outputs[way][1])
    assert not torch.allclose(outputs[way][1], net(x))


def test_watching_leaves_modules_as_they_were() -> None:
    net, seen = Net().eval(), []
    net.conv.forward = net.conv.forward  # as packages that wrap layers do
    before = {name: dict(module.__dict__) for name, module in net.named_modules()}
    with pytest.raises(ZeroDivisionError), watched(dict(net.named_modules()), lambda *call: seen.append(call[0])):
        net(torch.randn(1, 3, 5, 5))
        raise ZeroDivisionError
    assert seen == ["conv", "norm", "up", "row", "head", ""]
    for name, module in net.named_modules():
        assert module.__dict__.keys() == before[name].keys() and not module._forward_hooks
        assert module.__dict__.get("forward") is before[name].get("forward")


def test_first_argument() -> None:
    assert first_argument((1, 2), {}) == 1 and first_argument((), {"input": 3, "x": 4}) == 3
    assert first_argument((), {}) is None


def test_calls_inside_are_kept_from_who_watches_outside() -> None:
    layer, outer, inner = nn.Linear(2, 2), [], []
    x = torch.ones(1, 2)
    with watched({"layer": layer}, lambda name, *_: outer.append(name)):
        with pytest.raises(KeyError), unwatched(), watched({"layer": layer}, lambda name, *_: inner.append(name)):
            layer(x)
            layer.forward(x)
            raise KeyError
        assert (len(outer), len(inner)) == (0, 2)
        layer(x)
    assert (len(outer), len(inner)) == (1, 2) and "forward" not in vars(layer)
