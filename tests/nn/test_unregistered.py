"""Layers and weights in no module tree: they stay digital, and report and warning say so."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from tests.chips import evaluated

RPU = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
FAR = nn.Linear(6, 6)


class Helper:
    def __init__(self):
        self.layer = nn.Linear(6, 6)

    def __call__(self, x):
        return self.layer(x)


def closure():
    layer = nn.Linear(6, 6)
    return lambda x: layer(x)


HELD = {
    "held[1]": lambda: [nn.ReLU(), nn.Linear(6, 6)],
    "held['x'][0]": lambda: {"x": (nn.Linear(6, 6),)},
    "held (closure over layer)": closure,
    "held": lambda: functools.partial(nn.Linear(6, 6)),
    "held.layer": Helper,
    "held[0].0": lambda: [nn.Sequential(nn.Linear(6, 6))],
}


class Holds(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.head, self.held = nn.Linear(6, 12), held

    def forward(self, x):
        held = self.held
        while not callable(held):
            held = held["x"] if isinstance(held, dict) else held[-1]
        return self.head(held(x))


@pytest.mark.parametrize("place", sorted(HELD))
def test_unregistered_layers_are_in_the_report_and_told_with_what_to_do(place):
    with pytest.warns(UserWarning, match="1 layers or weights of the network stay digital.* register them"):
        chip = nabn.convert_to_noise_aware(Holds(HELD[place]()).eval(), RPU, example_inputs=X)
    report = chip.conversion_report
    assert report.n_weights == 36 + 72 and report.analog_share == 72 / 108
    (entry,) = report.kept_digital  # once, though the pass sees it too
    assert (entry.name, entry.kind, entry.n_weights) == (place, "Linear", 36)
    assert "not registered in the model" in entry.reason and "nn.ModuleList" in entry.reason


class Conv(nn.Module):
    """The example of a plain list."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.ls = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]

    def forward(self, x):
        x = self.first(x)
        for layer in self.ls:
            x = layer(x).relu()
        return x


def test_a_plain_list_of_convolutions_and_its_remedy():
    net = Conv().eval()
    with pytest.warns(UserWarning, match=r"2 layers .*ls\[0\] \(Conv2d\), ls\[1\] \(Conv2d\)"):
        report = nabn.convert_to_noise_aware(net, RPU).conversion_report
    assert report.analog_share == pytest.approx(216 / (216 + 2 * 576))
    assert "ls[1] [Conv2d, 576]: not registered in the model" in str(report)
    net.registered = nn.ModuleList(net.ls)
    chip = nabn.convert_to_noise_aware(net, RPU, example_inputs=torch.randn(2, 3, 5, 5))
    assert chip.conversion_report.analog_share == 1.0 and chip.ls[0] is chip.registered[0]


class Far(nn.Module):
    """Uses a layer that no attribute leads to."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 12)

    def forward(self, x):
        return self.head(FAR(x))


def test_layers_that_no_attribute_leads_to_are_seen_by_the_pass():
    chip = nabn.convert_to_noise_aware(Far().eval(), RPU)
    assert chip.conversion_report.analog_share == 1.0  # nobody can know
    with pytest.warns(UserWarning, match=r"weight of shape \(6, 6\) \(Parameter\)"):
        chip = nabn.convert_to_noise_aware(Far().eval(), RPU, example_inputs=X)
    assert chip.conversion_report.analog_share == 72 / 108
    result = evaluated(Far().eval(), lambda model: {"mean": float(model(X).mean())}, RPU)
    assert "66.7% of 108 matrix weights" in result.settings["conversion"]["s"]


class OutsideOfLayers(nn.Module):
    """Weights that its own forward pass multiplies with, in every way that it may hold them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 12)
        self.mix, self.pos_embed = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))
        self.register_buffer("filter", torch.randn(6, 6))
        self.plain, self.table = torch.randn(6, 6), nn.Embedding(6, 6)
        self.held = [nn.Parameter(torch.randn(6, 6))]
        self.added_embed, self.shift = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(1, 6))

    def forward(self, x):
        x = F.linear(x, self.mix) @ self.pos_embed + self.added_embed
        x = F.linear(F.linear(x, self.filter), self.plain) @ self.held[0].T
        return self.head(x @ self.table.weight.T + F.linear(self.shift, self.mix))


@pytest.mark.filterwarnings("ignore:1 layers or weights")
def test_weights_used_outside_of_layers_are_in_the_report():
    chip = nabn.convert_to_noise_aware(OutsideOfLayers().eval(), RPU, example_inputs=X)
    entries = chip.conversion_report.kept_digital
    found = {entry.name: (entry.kind, entry.n_weights) for entry in entries if entry.n_weights}
    assert found == {
        "": ("OutsideOfLayers", 36),
        "pos_embed": ("Parameter", 36),
        "filter": ("buffer", 36),
        "plain": ("Tensor", 36),
        "table.weight": ("Parameter", 36),
        "held[0]": ("Parameter", 36),
    }
    assert "OutsideOfLayers has no analog form: mix used outside of a layer" in str(chip.conversion_report)


def test_what_is_no_weight_of_the_model_is_not_listed():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.cls_token = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(1, 6))

        def forward(self, x):
            scores = self.q(x) @ torch.cat([self.k(x), self.cls_token]).T
            return F.conv1d(scores.unsqueeze(0), torch.ones(1, 3, 1)) + F.linear(self.cls_token, x).mean()

    chip = nabn.convert_to_noise_aware(Attention().eval(), RPU, example_inputs=X)
    assert [entry.n_weights for entry in chip.conversion_report.kept_digital] == [0]
    assert chip.conversion_report.analog_share == 1.0
