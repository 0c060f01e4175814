"""Which layers go together, and their multiplications."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.studies.placement.groups import count_multiplications, layer_groups


class Net(nn.Module):
    """`tied` has the weights of `first`; `attention` has projections that no digital module is; `same` is `twice`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(8, 3)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.same = self.twice
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.first(x).relu())
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(self.same(self.twice(x)))


@pytest.fixture
def analog() -> nn.Module:
    model = Net().eval()
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset())
    return nabn.program_chip(analog, 0)


def test_shared_weights_and_attention_go_together(analog: nn.Module) -> None:
    groups = {group.exclude: set(group.layers) for group in layer_groups(Net().eval(), analog)}
    assert ("first", "tied") in groups and groups["first", "tied"] == {"first", "tied"}
    attention = next(names for names in groups if "attention" in names)
    assert all(layer.startswith("attention.") for layer in groups[attention]) and len(groups[attention]) == 4
    assert ("twice",) in groups and ("last",) in groups and ("unused",) in groups
    assert len(groups) == 5


def test_every_group_can_be_excluded(analog: nn.Module) -> None:
    model = Net().eval()
    from aihwkit_nabn.nn.layers import named_analog_layers

    everything = set(named_analog_layers(analog))
    for group in layer_groups(model, analog):
        rest = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(), exclude=group.exclude)
        assert set(named_analog_layers(rest)) == everything - set(group.layers)


def test_multiplications_in_the_order_of_calls(analog: nn.Module) -> None:
    with torch.no_grad():
        counts = count_multiplications(analog, lambda: analog(torch.randn(2, 5, 8)))
    positions = 2 * 5
    assert counts["first"] == counts["tied"] == positions * 64
    assert counts["twice"] == 2 * positions * 64, "called twice"
    assert counts["last"] == positions * 24 and counts["unused"] == 0
    order = list(counts)
    assert order[0] == "first" and order[-1] == "unused" and order[-2] == "last"
    assert all(alignment.observer is None for alignment in analog.modules() if hasattr(alignment, "observer"))


def test_a_strided_grouped_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(8 * 9, 2)).eval()
    analog = nabn.program_chip(nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset()), 0)
    with torch.no_grad():
        counts = count_multiplications(analog, lambda: analog(torch.randn(3, 4, 7, 7)))
    assert counts == {"0": 3 * 9 * 8 * 2 * 9, "2": 3 * 8 * 9 * 2}


def test_a_model_that_is_a_layer_has_nothing_to_choose() -> None:
    model = nn.Linear(4, 2).eval()
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset())
    assert layer_groups(model, analog) == []
