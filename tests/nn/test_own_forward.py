"""Layers whose class has a forward pass of its own around the plain operation."""

from __future__ import annotations

import copy
import pickle
import re
import types

import pytest
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn import (
    NoiseAwareBatchNorm,
    NoiseAwareConv2d,
    NoiseAwareOwnForward,
    calibration_tensors,
    load_calibration_tensors,
    named_analog_layers,
)
from aihwkit_nabn.nn.input_ranges import input_ranges
from tests.chips import tiled
from tests.nn.own_forwards import AROUND, REFUSED, BiasBehind, DynamicSame, Pooled, Standardised, StaticSame
from tests.tensors import equal, state_of

PRESET = nabn.presets.GaussianWeightNoisePreset


def convert(model, sigma=0.1, **options):
    return nabn.convert_to_noise_aware(model, tiled(PRESET(sigma=sigma, **options), 20, 3))


def assert_same(got, expected, tolerance=1e-5):
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert (g - e).abs().max() <= tolerance * e.abs().max()


@pytest.fixture(params=AROUND)
def case(request, settle):
    torch.manual_seed(0)
    build, shape = AROUND[request.param]
    return build().eval(), torch.randn(shape)


def test_static_same_padding_keeps_its_output_size():
    torch.manual_seed(0)
    layer = StaticSame(3, 8, 3, stride=2).eval()
    analog = convert(nn.Sequential(layer))
    x = torch.randn(2, 3, 16, 16)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), layer.weight, layer.bias, stride=2)
    assert expected.shape == (2, 8, 8, 8)
    assert_same(analog(x), expected)


@torch.no_grad()
def test_the_chip_without_noise_is_the_layer(case):
    layer, x = case
    before = state_of(layer)
    analog = convert(layer)
    assert isinstance(analog, NoiseAwareOwnForward)
    assert [entry.kind for entry in analog.conversion_report.converted][-1] == type(layer).__name__
    assert analog.conversion_report.analog_share == 1.0
    assert_same(analog(x), layer(x))
    assert_same(copy.deepcopy(analog)(x), layer(x))
    again = convert(nn.Sequential(analog))
    assert_same(again(x), layer(x))
    assert again.conversion_report.n_weights == analog.conversion_report.n_weights
    assert equal(state_of(layer), before)


@torch.no_grad()
def test_a_chip_differs_and_says_so_everywhere_alike(case, tmp_path):
    """Programming, a copy, a pickle, a file: the same chip; and with converters and read noise, as from its seed."""
    layer, x = case
    model = nn.Sequential(layer)
    analog = convert(model)
    nabn.program_chip(analog, seed=3, t_inference="1d")
    found = analog(x)
    with pytest.raises(AssertionError):
        assert_same(found, layer(x), 1e-3)
    assert_same(copy.deepcopy(analog)(x), found, 0.0)
    nabn.save_chip(analog, tmp_path / "chip.nabn")
    assert_same(nabn.load_chip(model, tmp_path / "chip.nabn")(x), found, 0.0)
    nabn.program_chip(analog, seed=4)
    nabn.program_chip(analog, seed=3, t_inference="1d")
    assert_same(analog(x), found, 0.0)


@torch.no_grad()
def test_converters_act_on_the_prepared_input(case):
    """Against the layer itself, its operation quantised by hand."""
    layer, x = case
    analog = convert(nn.Sequential(layer), sigma=0.0, inp_bits=4)
    nabn.program_chip(analog, seed=0)
    ranges = nabn.calibrate_input_ranges(analog, [x], quantile=1.0)
    largest = []

    def note(call):
        largest.append(float(call.input.abs().max()))
        return call.exactly()

    own = analog[0].own_forward
    own.run(layer, note, (x,), {}, weight=layer.weight, bias=layer.bias)
    assert ranges["0"] == pytest.approx(max(largest), rel=1e-6)

    def quantised(call):
        step = ranges["0"] / 7
        return call.operation((call.input / step).round().clamp(-7, 7) * step, call.weight, call.bias, **call.geometry)

    expected = own.run(layer, quantised, (x,), {}, weight=layer.weight, bias=layer.bias)
    if list(named_analog_layers(analog)) == ["0"]:
        assert_same(analog(x), expected, 1e-4)


@torch.no_grad()
def test_on_the_compiled_tile():
    torch.manual_seed(0)
    layer = StaticSame(3, 8, 3, stride=2).eval()
    rpu_config = InferenceRPUConfig(drift_compensation=None)
    rpu_config.forward.is_perfect = True
    analog = nabn.convert_to_noise_aware(nn.Sequential(layer), rpu_config)
    x = torch.randn(2, 3, 16, 16)
    assert isinstance(analog[0], NoiseAwareOwnForward)
    assert_same(analog(x), layer(x))


@pytest.mark.parametrize("method", ["paired", "common_mode", "low_rank", "auto", "distill"])
def test_calibration_brings_the_layer_back(case, method):
    layer, x = case
    model = nn.Sequential(layer)
    analog = convert(model, sigma=0.2)
    nabn.program_chip(analog, seed=1)
    x = torch.cat([x + 0.1 * torch.randn_like(x) for _ in range(8)])
    options = {"steps": 8} if method == "distill" else {}

    def error():
        with torch.no_grad():
            pairs = zip(tree_leaves(analog(x)), tree_leaves(layer(x)), strict=True)
            return sum(float((a - d).square().mean()) for a, d in pairs)

    before, state = error(), state_of(analog)
    report = nabn.calibrate(analog, [x[:9], x[9:]], method=method, reference=model, **options)
    assert error() < before or (error() == before and method == "auto")  # that it took none
    with nabn.calibration_disabled(analog):
        assert error() == pytest.approx(before, rel=1e-6)
    after = error()
    handle = nabn.fold_calibration(analog)
    assert error() == pytest.approx(after, rel=1e-3)
    handle.undo()
    report.undo()
    assert error() == before
    assert state_of(analog).keys() == state.keys()


def test_paired_compares_products_and_not_what_is_made_of_them():
    """With the exact scale and offset of the operation's outputs, whatever the forward pass does with them."""
    torch.manual_seed(0)
    layer = BiasBehind(3, 4, 3).eval()
    model = nn.Sequential(layer)
    analog = convert(model, sigma=0.3)
    nabn.program_chip(analog, seed=1)
    x = torch.randn(16, 3, 9, 8)
    weight = analog[0].weight
    nabn.calibrate(analog, [x], method="paired", reference=model, shrink=0.0)
    digital, noisy = F.conv2d(x, layer.weight).detach(), F.conv2d(x, weight)
    scale = (digital.var((0, 2, 3)) / noisy.var((0, 2, 3))).sqrt()
    offset = digital.mean((0, 2, 3)) - scale * noisy.mean((0, 2, 3))
    assert torch.allclose(analog[0].alignment.offset, offset, atol=1e-3)
    expected = F.gelu((scale.view(-1, 1, 1) * noisy + offset.view(-1, 1, 1)) * 2 + layer.bias.view(-1, 1, 1)).flip(1)
    with torch.no_grad():
        assert torch.allclose(analog(x), expected, atol=5e-3)


@torch.no_grad()
def test_back_to_digital(case):
    layer, x = case
    analog = convert(layer)
    nabn.program_chip(analog, seed=2)
    if analog.weight_is_computed:
        with pytest.raises(ConversionError, match=f"{type(layer).__name__} computes its weight, so it cannot hold"):
            type(analog).to_digital(analog)
        return
    digital = type(analog).to_digital(analog)
    assert type(digital) is type(layer) and state_of(digital).keys() == state_of(layer).keys()
    assert_same(digital(x), analog(x))
    n = analog.alignment.n_channels
    analog.alignment.set(torch.full((n,), 1.5), torch.arange(n) / n)
    if analog.bias is not None and not analog.bias_in_product:
        with pytest.raises(ConversionError, match="adds no bias to the product"):
            type(analog).to_digital(analog)
    else:
        assert_same(type(analog).to_digital(analog)(x), analog(x))


def test_gradients_are_those_of_the_layer(case):
    layer, x = case
    analog = convert(layer)
    for model in (layer, analog):
        sum(out.square().sum() for out in tree_leaves(model(x))).backward()
    if not analog.weight_is_computed:
        grads = torch.cat([tile.tile.weight.grad.flatten() for tile in analog.analog_tiles()])
        assert grads.square().sum().item() == pytest.approx(layer.weight.grad.square().sum().item(), rel=1e-3)
    for name, parameter in () if analog.weight_is_computed else analog.named_parameters():
        own = dict(layer.named_parameters()).get(name)
        if own is not None and name != "bias":
            assert torch.allclose(parameter.grad, own.grad, rtol=1e-3, atol=1e-4)
    if layer.bias is not None:
        assert torch.allclose(analog.bias.grad, layer.bias.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_other_uses_of_the_weight_are_refused_with_the_reason(name):
    torch.manual_seed(0)
    build, reason = REFUSED[name]
    layer = build()
    analog = nabn.convert_to_noise_aware(nn.ModuleList([layer, nn.Linear(2, 2)]), PRESET())
    (entry,) = analog.conversion_report.refused
    assert entry.n_weights == layer.weight.numel()
    assert re.search(reason, entry.reason), entry.reason
    assert type(analog[0]) is type(layer)


def double_first(self, x):
    return F.linear(x * 2, self.weight, self.bias)


@torch.no_grad()
def test_forward_passes_set_on_one_layer():
    torch.manual_seed(0)
    bound, closed = nn.Linear(4, 3), nn.Linear(4, 3)
    bound.forward = types.MethodType(double_first, bound)
    closed.forward = lambda x: F.linear(x * 2, closed.weight)
    analog = convert(nn.ModuleList([bound, closed]))
    x = torch.randn(5, 4)
    assert isinstance(analog[0], NoiseAwareOwnForward)
    assert_same(analog[0](x), bound(x))
    assert_same(type(analog[0]).to_digital(analog[0])(x), bound(x))
    (refused,) = analog.conversion_report.refused
    assert refused.name == "1" and "a function set on this one layer" in refused.reason


@torch.no_grad()
def test_what_belongs_to_the_layer_is_kept():
    torch.manual_seed(0)
    build, shape = AROUND["with norm"]
    layer = build().eval()
    layer.mark, layer._hidden = "seen", 3
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(module))
    analog = convert(nn.Sequential(layer))[0]
    assert analog.mark == "seen" and analog._hidden == 3 and analog.stride == (1, 1)
    assert isinstance(analog.before, NoiseAwareConv2d) and isinstance(analog.norm, NoiseAwareBatchNorm)
    assert {name for name in analog.state_dict() if name.startswith("norm.")} == {
        f"norm.{name}" for name in layer.norm.state_dict()
    }
    analog(torch.randn(shape))
    assert seen == [analog]
    assert analog.before in analog.children()
    names = set(convert(nn.Sequential(AROUND["own bias"][0]())).state_dict())
    assert {"0.gain", "0.bias"} < names and not names & {"0.shift", "0.weight"}


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"out_bits": 8}, {"out_bits": 8, "output_range": True}], ids=str)
def test_input_ranges_are_those_of_the_layer_and_not_of_layers_inside_it(options):
    torch.manual_seed(0)
    build, shape = AROUND["with norm"]
    model = nn.Sequential(build()).eval()
    for parameter in model[0].before.parameters():
        parameter.mul_(0.01)
    analog = nabn.program_chip(convert(model, inp_bits=8, **options), seed=0)
    ranges = nabn.calibrate_input_ranges(analog, [torch.randn(shape)])
    assert ranges["0"] < 0.2 * ranges["0.before"] and input_ranges(analog) == pytest.approx(ranges)
    load_calibration_tensors(analog, calibration_tensors(analog))
    assert input_ranges(analog) == pytest.approx(ranges)


def test_a_shared_layer_stays_one(images, relative):
    torch.manual_seed(0)
    shared = DynamicSame(3, 3, 3)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)).eval()
    analog = convert(model)
    assert analog[0] is analog[2][0] and len(analog.conversion_report.converted) == 1
    assert relative(analog(images(2)), model(images(2))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", [DynamicSame, Standardised])
def test_computed_weights_by_parametrization_and_hook(kind, relative):
    torch.manual_seed(0)
    layers = [parametrizations.weight_norm(kind(3, 4, 3)), nn.utils.spectral_norm(kind(4, 4, 3))]
    model = nn.Sequential(*layers).eval()
    analog = convert(model)
    assert all(isinstance(layer, NoiseAwareOwnForward) for layer in analog)
    assert not any("original" in name or name.endswith(("_orig", "_u")) for name in analog.state_dict())
    x = torch.randn(2, 3, 9, 9)
    assert relative(analog(x), model(x)) < 1e-5
    nabn.program_chip(analog, seed=0)
    nabn.calibrate(analog, [x], method="paired", reference=model)


def test_a_layer_that_changes_its_ways_says_so():
    class Fickle(nn.Linear):
        scaled = False

        def forward(self, x):
            out = super().forward(x)
            return out * self.weight.mean() if self.scaled else out

    layer = Fickle(4, 3).eval()
    analog = convert(nn.Sequential(layer))
    Fickle.scaled = True
    with pytest.raises(NabnError, match="uses the weight for more than"):
        analog(torch.randn(2, 4))


def test_a_whole_layer_can_be_pickled(tmp_path):
    torch.manual_seed(0)
    layer = convert(nn.Sequential(Pooled(6, 4)))[0]
    assert pickle.loads(pickle.dumps(layer.own_forward)) == layer.own_forward


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["static same", "standardised by norm"])
def test_compiling_and_tracing_change_nothing(name):
    torch.manual_seed(0)
    build, shape = AROUND[name]
    analog = convert(nn.Sequential(build(), nn.ReLU()))
    nabn.program_chip(analog, seed=0)
    x = torch.randn(shape)
    assert_same(torch.compile(analog, backend="eager")(x), analog(x))
    assert_same(torch.jit.trace(analog, x)(x), analog(x))


@pytest.mark.parametrize("name", ["static same", "pooled", "with norm"])
def test_hardware_aware_training(name):
    torch.manual_seed(0)
    build, shape = AROUND[name]
    model = nn.Sequential(build(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(8, *shape[1:])
    model(x)
    labels = torch.randint(3, (8,))
    trained = nabn.train_hardware_aware(
        model, [(x, labels)], noise=nabn.TrainingNoise(std=0.02), epochs=3, learning_rate=0.05
    )
    twin = trained.model
    assert type(twin[0]) is type(model[0])
    assert not torch.equal(twin[0].weight, model[0].weight)
    with torch.no_grad():
        assert F.cross_entropy(twin(x), labels) < F.cross_entropy(model(x), labels)
        assert_same(convert(twin)(x), twin(x))


def test_hardware_aware_training_leaves_computed_weights_digital():
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), nn.Linear(196, 3)).eval()
    x, labels = torch.randn(8, 3, 9, 9), torch.randint(3, (8,))
    trained = nabn.train_hardware_aware(model, [(x, labels)], noise=nabn.TrainingNoise(std=0.02), epochs=3)
    assert re.search(r"kept digital.*\n  0 \[Standardised", trained.report.on_tiles)
    assert not torch.equal(trained.model[0].weight, model[0].weight)
    with torch.no_grad():
        assert F.cross_entropy(trained.model(x), labels) < F.cross_entropy(model(x), labels)


@pytest.mark.parametrize("module, name", [("timm.layers", "Conv2dSame"), ("timm.layers", "StdConv2dSame")])
def test_of_timm(module, name, relative):
    kind = getattr(pytest.importorskip(module), name)
    torch.manual_seed(0)
    layer = kind(3, 8, 3, stride=2).eval()
    x = torch.randn(2, 3, 15, 16)
    with torch.no_grad():
        assert relative(convert(layer)(x), layer(x)) < 1e-5


@pytest.mark.parametrize("name", ["Conv2dAdaptivePadding", "ConvWS2d", "ConvAWS2d"])
def test_of_mmcv(name, relative):
    kind = getattr(pytest.importorskip("mmcv.cnn.bricks"), name, None) or getattr(pytest.importorskip("mmcv.cnn"), name)
    torch.manual_seed(0)
    layer = kind(3, 8, 3, stride=2).eval()
    for parameter in layer.buffers():
        parameter.data.uniform_(0.5, 1.0)
    for size in ((15, 16), (8, 9)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert relative(convert(layer)(x), layer(x)) < 1e-5
