"""CARAFE against loops over outputs and taps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import (
    assert_precise,
    each_precision,
    each_seed,
    needs_gpu,
    normal,
    outputs_and_gradients,
    same,
    strided,
    weighting,
)

# kernel size, groups, scale; height and width
CASES = {
    "plain": (3, 1, 2, (3, 4)),
    "grouped": (3, 2, 3, (2, 5)),
    "same size": (1, 4, 1, (3, 2)),
    "kernel larger than the map": (5, 2, 2, (1, 3)),
}
KINDS = [ops.carafe, ops.carafe_naive]


def make(case, seed, batch=2, channels=4):
    kernel, groups, scale, (height, width) = CASES[case]
    masks = normal(batch, groups * kernel**2, height * scale, width * scale, seed=seed + 1)
    return [normal(batch, channels, height, width, seed=seed), masks], (kernel, groups, scale)


def upsampled(features, masks, kernel, groups, scale):
    features, masks = features.numpy(), masks.numpy()
    batch, channels, height, width = features.shape
    out = np.zeros((batch, channels, height * scale, width * scale))
    for n, c, i, j, u, v in np.ndindex(*out.shape, kernel, kernel):
        y, x = i // scale + u - kernel // 2, j // scale + v - kernel // 2
        if 0 <= y < height and 0 <= x < width:
            tap = (c * groups // channels * kernel + u) * kernel + v
            out[n, c, i, j] += features[n, c, y, x] * masks[n, tap, i, j]
    return out


@each_seed
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_carafe(kind, case, seed):
    inputs, options = make(case, seed, batch=1 + seed % 2)
    same(kind(*(strided(x) for x in inputs), *options), upsampled(*inputs, *options))
    layer = {ops.carafe: ops.CARAFE, ops.carafe_naive: ops.CARAFENaive}[kind](*options)
    same(layer(*(x.clone().requires_grad_()[:] for x in inputs)), upsampled(*inputs, *options))


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    inputs, options = make(case, 3, batch=1)
    features, masks = (x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(lambda *t: ops.carafe(*t, *options), (features, masks))


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_naive_one(case):
    # On the CPU mmcv refuses the backward pass of this one, so ours is called directly.
    inputs, options = make(case, 3)
    out, *expected = outputs_and_gradients(lambda *t: ops.carafe(*t, *options), inputs)
    found = [strided(torch.full_like(x, 7)) for x in inputs]
    keywords = dict(zip(("kernel_size", "group_size", "scale_factor"), options, strict=True))
    operators.carafe_naive_backward(strided(weighting(out)), *inputs, *found, **keywords)
    for got, gradient in zip(found, expected, strict=True):
        same(got, gradient)


@needs_gpu
def test_gradients_of_the_naive_one_on_a_gpu():
    inputs, options = make("grouped", 3)
    expected = outputs_and_gradients(lambda *t: ops.carafe(*t, *options), inputs)
    got = outputs_and_gradients(lambda *t: ops.carafe_naive(*t, *options), [x.cuda() for x in inputs])
    for mine, other in zip(got, expected, strict=True):
        same(mine.cpu(), other)


@each_precision
@pytest.mark.parametrize("case", CASES)
def test_precision(case, dtype, device):
    inputs, options = make(case, 1)
    assert_precise(lambda *t: ops.carafe(*t, *options), inputs, dtype, device)
    assert_precise(lambda *t: ops.carafe_naive(*t, *options).detach(), inputs, dtype, device)


def test_no_images():
    features, masks = make("grouped", 0, batch=0)[0]
    out = ops.carafe(features.requires_grad_(), masks.requires_grad_(), 3, 2, 3)
    out.sum().backward()
    assert out.shape == (0, 4, 6, 15) and features.grad.shape == features.shape and masks.grad.shape == masks.shape


def test_the_layer_that_makes_its_kernels():
    torch.manual_seed(0)
    layer = ops.CARAFEPack(4, scale_factor=2, up_kernel=3, up_group=2, compressed_channels=3)
    x = normal(2, 4, 3, 5).float().requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    assert out.shape == (2, 4, 6, 10) and x.grad.any() and all(p.grad.any() for p in layer.parameters())
    # Its kernels add up to one, so a constant stays inside.
    torch.testing.assert_close(layer(torch.full((1, 4, 5, 5), 3.0))[..., 2:-2, 2:-2], torch.full((1, 4, 6, 6), 3.0))
