"""Deformable convolutions against loops over outputs, channels and taps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import (
    assert_precise,
    between_pixels,
    each_precision,
    each_seed,
    normal,
    outputs_and_gradients,
    same,
    strided,
    uniform,
    weighting,
)

# kernel; stride, padding, dilation, groups, deform groups; height and width of the input
GEOMETRIES = {
    "plain": ((3, 3), (1, 1, 1, 1, 1), (5, 4)),
    "point": ((1, 1), (1, 0, 1, 2, 1), (4, 3)),
    "rectangular": ((2, 3), ((2, 1), (0, 2), (1, 2), 1, 1), (5, 6)),
    "strided": ((3, 2), ((1, 3), (2, 1), (2, 1), 1, 2), (6, 7)),
    "grouped": ((2, 2), (2, 1, 1, 2, 1), (4, 5)),
    "grouped twice": ((3, 1), (1, (1, 0), 1, 2, 4), (3, 4)),
    "groups across": ((1, 2), (1, 0, (1, 2), 4, 2), (3, 5)),
}
plain, modulated = ops.deform_conv2d, ops.modulated_deform_conv2d


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def make(geometry, seed, batch=2):
    """Input, offsets of some pixels (some out of the image), factors, weight and bias."""
    kernel, options, size = GEOMETRIES[geometry]
    stride, padding, dilation, groups, parts = options
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, pair(stride), pair(padding), pair(dilation), strict=True)
    ]
    taps = parts * kernel[0] * kernel[1]
    offset = normal(batch, 2 * taps, *out, seed=seed + 1) * 2
    # Away from whole pixels, where the slope jumps.
    offset = offset.floor() + 0.1 + 0.8 * uniform(*offset.shape, seed=seed + 2)
    return (
        normal(batch, 4, *size, seed=seed),
        offset,
        uniform(batch, taps, *out, seed=seed + 3),
        normal(8, 4 // groups, *kernel, seed=seed + 4),
        normal(8, seed=seed + 5),
    ), options


def convolved(x, offset, factors, weight, bias, stride, padding, dilation, groups, parts):
    x, offset, factors, weight, bias = (t.detach().numpy() for t in (x, offset, factors, weight, bias))
    stride, padding, dilation = pair(stride), pair(padding), pair(dilation)
    (batch, channels), (outs, _, height, width) = x.shape[:2], weight.shape
    out = np.zeros((batch, outs, *offset.shape[2:])) + bias[:, None, None]
    for n, part, i, j, u, v in np.ndindex(batch, parts, *offset.shape[2:], height, width):
        tap = (part * height + u) * width + v
        y = i * stride[0] - padding[0] + u * dilation[0] + offset[n, 2 * tap, i, j]
        z = j * stride[1] - padding[1] + v * dilation[1] + offset[n, 2 * tap + 1, i, j]
        values = between_pixels(x[n], y, z) * factors[n, tap, i, j]
        for c in range(channels * part // parts, channels * (part + 1) // parts):
            group, within = divmod(c, channels // groups)
            for o in range(outs * group // groups, outs * (group + 1) // groups):
                out[n, o, i, j] += weight[o, within, u, v] * values[c]
    return out


@each_seed
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolutions(geometry, seed):
    inputs, options = make(geometry, seed, batch=1 + seed % 2)
    x, offset, factors, weight, bias = (strided(t) for t in inputs)
    same(modulated(x, offset, factors, weight, bias, *options), convolved(*inputs, *options))
    none = torch.zeros(8, dtype=torch.float64)
    same(modulated(x, offset, factors, weight, None, *options), convolved(*inputs[:4], none, *options))
    same(plain(x, offset, weight, *options), convolved(*inputs[:2], torch.ones_like(factors), weight, none, *options))


@pytest.mark.parametrize("geometry", ["rectangular", "grouped", "groups across"])
def test_gradients(geometry):
    inputs, options = make(geometry, 7, batch=1)
    x, offset, factors, weight, bias = (t.requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(lambda *t: modulated(*t, *options), (x, offset, factors, weight, bias))
    assert torch.autograd.gradcheck(lambda *t: modulated(*t, None, *options), (x, offset, factors, weight))
    assert torch.autograd.gradcheck(lambda *t: plain(*t, *options), (x, offset, weight))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_are_those_of_the_loops_around_a_point(geometry):
    # Along one direction through all inputs, so that every geometry can be looked at.
    inputs, options = make(geometry, 11, batch=1)
    out, *gradients = outputs_and_gradients(lambda *t: modulated(*t, *options), inputs)
    along = [normal(*t.shape, seed=40 + i) for i, t in enumerate(inputs)]
    ends = [convolved(*(t + s * a for t, a in zip(inputs, along, strict=True)), *options) for s in (-1e-6, 1e-6)]
    slope = ((ends[1] - ends[0]) * weighting(out).numpy()).sum() / 2e-6
    assert slope == pytest.approx(sum(float((g * a).sum()) for g, a in zip(gradients, along, strict=True)), rel=1e-6)


def test_offsets_of_zero_have_the_slope_ahead_and_none_one_pixel_outside():
    # Layers begin so, with many samples on the padding's pixels.
    x, ones = normal(1, 1, 3, 4), torch.ones(1, 1, 2, 3, dtype=torch.float64)
    options = ((1, 2), (1, 2), (2, 1))  # stride, padding, dilation
    expected = np.zeros((6, 2, 3, 3))
    for u, v, i, j in np.ndindex(2, 3, 3, 3):
        y, z = i - 1 + 2 * u, 2 * j - 2 + v
        here, below, right = (between_pixels(x[0].numpy(), *at)[0] for at in ((y, z), (y + 0.5, z), (y, z + 0.5)))
        if y > -1 and z > -1:
            expected[3 * u + v, :, i, j] = (below - here) / 0.5, (right - here) / 0.5
    offset = torch.zeros(1, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    factors = torch.ones(1, 6, 3, 3)
    for out in (plain(x, offset, ones, *options), modulated(x, offset, factors, ones, None, *options)):
        (gradient,) = torch.autograd.grad(out.sum(), offset)
        same(gradient[0], expected.reshape(12, 3, 3))
    assert (expected == 0).all(1).sum() > 10


def test_only_some_of_the_inputs_have_gradients():
    (x, offset, factors, weight, bias), options = make("strided", 3)
    _, gx, goffset, gweight = outputs_and_gradients(lambda *t: plain(*t, *options), [x, offset, weight])
    for which, expected in ((weight, gweight), (x, gx), (offset, goffset)):
        leaf = which.clone().requires_grad_()
        arguments = [leaf[:] if t is which else t for t in (x, offset, weight)]
        out = plain(*arguments, *options)
        out.backward(weighting(out))
        same(leaf.grad, expected)


@pytest.mark.parametrize("kind", ["plain", "modulated"])
def test_a_second_backward_pass_has_gradients_of_its_own(kind):
    # Ours keeps the weight's gradient of one in mmcv's work space.
    (x, offset, factors, weight, bias), options = make("strided", 3)
    inputs = (x, offset, weight) if kind == "plain" else (x, offset, factors, weight, bias)
    leaves = [t.requires_grad_() for t in inputs]
    out = (plain if kind == "plain" else modulated)(*leaves, *options)
    first = torch.autograd.grad(out, leaves, weighting(out), retain_graph=True)
    torch.autograd.grad(out, leaves[:2], weighting(out).flip(0), retain_graph=True)
    for once, twice in zip(first, torch.autograd.grad(out, leaves, 2 * weighting(out)), strict=True):
        same(twice, 2 * once)


def test_the_scale_of_the_weights_gradient():
    (x, offset, _, weight, _), (stride, padding, dilation, groups, parts) = make("strided", 3)
    grad = normal(2, 8, *offset.shape[2:], seed=9)
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
    geometry = dict(zip(names, (*stride, *padding, *dilation), strict=True))
    rest = dict(kW=2, kH=3, group=groups, deformable_group=parts, im2col_step=2)
    once, twice = torch.full_like(weight, torch.nan), torch.full_like(weight, torch.nan)
    for target, scale in ((once, 1), (twice, 2)):
        operators.deform_conv_backward_parameters(
            x, offset, grad, target, x.new_empty(0), x.new_empty(0), **geometry, **rest, scale=scale
        )
    same(twice, 2 * once)
    assert once.abs().min() > 0


@each_precision
@pytest.mark.parametrize("geometry", ["strided", "groups across"])
@pytest.mark.parametrize("kind", ["plain", "modulated"])
def test_precision(kind, geometry, dtype, device):
    inputs, options = make(geometry, 1)
    if kind == "plain":
        x, offset, _, weight, _ = inputs
        assert_precise(lambda *t: plain(*t, *options), [x, offset, weight], dtype, device)
    else:
        assert_precise(lambda *t: modulated(*t, *options), inputs, dtype, device)


def test_layers_in_half_precision_of_which_mmcv_casts_the_rest():
    torch.manual_seed(0)
    x = normal(2, 4, 5, 5).float()
    for kind in (ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack):
        layer = kind(4, 8, 3, padding=1)
        torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.15)
        out.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())


def test_samples_at_the_edges():
    x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    for offset, expected in ((2.0, 4.0), (2.75, 1.0), (3.0, 0.0), (-0.75, 0.25), (-1.0, 0.0), (1e9, 0.0)):
        where = torch.tensor([0.0, offset]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
        assert float(plain(x, where, torch.ones(1, 1, 1, 1), 1, 0)[0, 0, 0, 0]) == expected
