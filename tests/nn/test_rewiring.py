"""Layers that are held beside the module tree lie on the chip there too, or the conversion says that they cannot."""

from __future__ import annotations

import copy
import functools
import types
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError

RPU = nabn.presets.GaussianWeightNoisePreset(sigma=1.0)
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


class Helper:
    """No module, but holds one."""

    def __init__(self, layer):
        self.layer = layer

    def run(self, x):
        return self.layer(x)


class Slotted(Helper):
    __slots__ = ("inner",)

    def __init__(self, layer):
        self.inner = [layer]

    def run(self, x):
        return self.inner[0](x)


def closure(layer):
    def op(x):
        return layer(x)

    return op


def recursive(layer):
    def op(x, again=True):
        return op(x, again=False) if again else layer(x)

    return op


def list_in_closure(layer):
    layers = [(layer,), "x"]
    return lambda x: layers[0][0](x)


def helper_in_closure(layer):
    helper = Helper(layer)
    return lambda x: helper.run(x)


HELD = {
    "module": lambda layer: layer,
    "list": lambda layer: [layer],
    "nested": lambda layer: ({"layer": layer}, ["b", (layer,)]),
    "partial": functools.partial,
    "call": lambda layer: layer.__call__,
    "closure": closure,
    "recursive": recursive,
    "list in closure": list_in_closure,
    "default": lambda layer: lambda x, layer=layer: layer(x),
    "object": Helper,
    "method of object": lambda layer: Helper(layer).run,
    "slots": Slotted,
    "object in closure": helper_in_closure,
    "unregistered container": lambda layer: nn.Sequential(layer, nn.Identity()),
    "weak reference": weakref.ref,
    "namespace": lambda layer: types.SimpleNamespace(layer=[layer]),
}


def call(held, x):
    if isinstance(held, (nn.Module, functools.partial)):
        return held(x)
    if isinstance(held, list):
        return held[0](x)
    if isinstance(held, tuple):
        assert held[1][1][0] is held[0]["layer"]
        return held[0]["layer"](x)
    if isinstance(held, Helper):
        return held.run(x)
    if isinstance(held, types.SimpleNamespace):
        return held.layer[0](x)
    return held()(x) if isinstance(held, weakref.ref) else held(x)


class Holds(nn.Module):
    """Reaches its layer in some way past the tree."""

    def __init__(self, layer, way):
        super().__init__()
        self.layer = layer
        self.__dict__["held"] = HELD[way](layer)

    def forward(self, x):
        return call(self.held, x)


@given(ways=st.lists(st.sampled_from(sorted(HELD)), min_size=1, max_size=4), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_whatever_holds_them(ways, seed):
    check_on_the_chip(ways, seed)


@pytest.mark.parametrize("way", sorted(HELD))
def test_each_way(way):
    check_on_the_chip([way], 0)


def check_on_the_chip(ways, seed):
    """At a noise of this size no layer gives its digital output by chance; verified: the noise-free chip does."""
    torch.manual_seed(seed)
    net = nn.Sequential(*(Holds(nn.Linear(5, 5), way) for way in ways)).eval()
    expected = net(X)
    chip = nabn.convert_to_noise_aware(net, RPU, example_inputs=X)
    assert f"verified on the example inputs: {len(ways)} layers" in str(chip.conversion_report)
    nabn.program_chip(chip, seed=seed)
    for analog, digital in zip(chip, net, strict=True):
        assert not torch.allclose(analog(X), digital(X), atol=1e-3)
    nabn.calibrate(chip, [X], "paired", reference=net)
    assert torch.equal(net(X), expected)


class Two(nn.Module):
    def __init__(self, keep=lambda net: None):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.op = keep(self)

    def forward(self, x):
        return self.b(self.a(x) if self.op is None else self.op(x))


def wrapped_forward():
    net = Two()
    net.forward = torch.autocast("cpu", dtype=torch.bfloat16, enabled=False)(net.forward)
    return net


def patched_forward():
    """As libraries patch forward passes: a method of the model around the old one."""
    net = Two()
    before = net.forward
    net.forward = types.MethodType(lambda self, x: before(x) + self.a(x), net)
    return net


@pytest.mark.parametrize("make", [wrapped_forward, patched_forward, lambda: Two(lambda net: lambda x: net.a(x).relu())])
def test_forward_passes_over_the_model_run_the_copys_layers(make):
    net = make().eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, RPU, example_inputs=X), seed=0)
    seen = []
    for model in (net, chip):
        model.a.register_forward_hook(lambda module, args, output: seen.append(module))
    chip(X)
    assert seen and all(module is chip.a for module in seen)


@pytest.mark.parametrize(
    "keep",
    [
        lambda net: net.a.forward,
        lambda net: functools.partial(net.a.forward),
        lambda net: torch.autocast("cpu", dtype=torch.bfloat16)(net.a.forward),
        lambda net: torch.compile(net.a.forward, backend="eager"),
    ],
    ids=["method", "partial", "wrapped", "compiled"],
)
def test_kept_forward_methods_are_told_at_once(keep):
    with pytest.raises(ConversionError, match=r"op keeps forward\(\) of a Linear.*call the layer itself"):
        nabn.convert_to_noise_aware(Two(keep).eval(), RPU)
    assert nabn.convert_to_noise_aware(Two(keep).eval(), RPU, exclude="a") is not None


class Shared(Helper):
    """Stays one when the model is copied."""

    def __call__(self, x):
        return self.layer(x)

    def __deepcopy__(self, memo):
        return self


def test_what_is_not_copied_with_the_model_is_told_at_once():
    for keep in (lambda net: Shared(net.a), lambda net: functools.cache(net.a.__call__)):
        with pytest.raises(
            ConversionError, match=r"op.* leads to layer 'a' of the digital model.*call the layer itself"
        ):
            nabn.convert_to_noise_aware(Two(keep).eval(), RPU)


def test_what_a_function_cannot_take_along_is_told_with_its_place():
    def keep(net):
        held = [net.a, open(__file__)]
        return lambda x: held[0](x)

    with pytest.raises(
        ConversionError, match=r"^op holds layers and cannot be copied: TypeError.*call the layer itself"
    ):
        nabn.convert_to_noise_aware(Two(keep).eval(), RPU)


def test_variables_of_functions_that_hold_no_layers_stay_shared():
    seen = []
    trainer = types.SimpleNamespace(lock=open(__file__))

    def keep(net):
        trainer.net = net

        def op(x):
            seen.append(len(trainer.__dict__))
            return net.a(x)

        return op

    net = Two(keep).eval()
    chip = nabn.convert_to_noise_aware(net, RPU)
    before = copy.copy(net.__dict__)
    chip(X), net(X)
    assert seen == [2, 2] and net.__dict__ == before
