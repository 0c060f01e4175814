"""Convolution at chosen places and the masks of PSANet against loops over positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import assert_precise, each_precision, each_seed, normal, same, strided, uniform

# kernel, padding; height and width
CONVOLUTIONS = {
    "plain": ((3, 3), (1, 1), (5, 4)),
    "point": ((1, 1), (0, 0), (3, 5)),
    "rectangular": ((1, 3), (0, 1), (4, 3)),
    "padded more": ((2, 3), (2, 2), (3, 4)),
    "larger than the map": ((5, 7), (2, 3), (2, 1)),
}


def make(case, seed):
    kernel, padding, size = CONVOLUTIONS[case]
    inputs = [normal(1, 3, *size, seed=seed), normal(4, 3, *kernel, seed=seed + 1), normal(4, seed=seed + 2)]
    return inputs, uniform(1, *size, seed=seed + 3) < 0.4, padding


def convolved(x, weight, bias, chosen, padding):
    x, weight, bias = x[0].numpy(), weight.numpy(), bias.numpy()
    channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    out = np.zeros((1, len(weight), height + 2 * padding[0] - rows + 1, width + 2 * padding[1] - columns + 1))
    for i, j in chosen[0].nonzero().tolist():
        out[0, :, i, j] = bias
        for o, c, u, v in np.ndindex(*weight.shape):
            y, z = i - padding[0] + u, j - padding[1] + v
            if 0 <= y < height and 0 <= z < width:
                out[0, o, i, j] += weight[o, c, u, v] * x[c, y, z]
    return out


@each_seed
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_masked_convolution(case, seed):
    (x, weight, bias), chosen, padding = make(case, seed)
    expected = convolved(x, weight, bias, chosen, padding)
    same(ops.masked_conv2d(strided(x), strided(chosen), weight, bias, padding), expected)
    # Whatever is above zero is chosen; nothing has a gradient.
    scores = torch.where(chosen, 0.3, -0.5)
    same(ops.masked_conv2d(x.requires_grad_()[:], scores, weight, bias, padding), expected)


def test_everywhere_it_is_the_convolution_and_nowhere_nothing():
    torch.manual_seed(0)
    layer, x = ops.MaskedConv2d(3, 4, 3, padding=1).double(), normal(1, 3, 4, 5)
    torch.testing.assert_close(layer(x, torch.ones(1, 4, 5)), layer(x))
    assert not layer(x, torch.zeros(1, 4, 5)).any()


def test_no_places():
    none, columns = torch.zeros(0, dtype=torch.long), torch.zeros(27, 0)
    keywords = {"kernel_h": 3, "kernel_w": 3, "pad_h": 1, "pad_w": 1}
    operators.masked_im2col_forward(torch.ones(1, 3, 4, 5), none, none, columns, **keywords)
    image = torch.zeros(1, 2, 4, 5)
    operators.masked_col2im_forward(torch.zeros(2, 0), none, none, image, height=4, width=5, channels=2)
    assert not image.any()


@each_precision
@pytest.mark.parametrize("case", ["plain", "padded more"])
def test_precision_of_masked_convolution(case, dtype, device):
    inputs, chosen, padding = make(case, 1)
    assert_precise(
        lambda x, w, b: ops.masked_conv2d(x, chosen.to(x.device), w, b, padding).detach(), inputs, dtype, device
    )


# Of the masks, then of the maps.
SIZES = {
    "as large as ever needed": ((5, 7), (3, 4)),
    "smaller": ((3, 1), (4, 5)),
    "larger": ((9, 11), (2, 3)),
    "even": ((4, 2), (3, 3)),
    "one position": ((3, 3), (1, 1)),
}
KINDS = ["collect", "distribute"]


def laid_out(x, kind, mask):
    x = x.numpy()
    batch, _, height, width = x.shape
    out = np.zeros((batch, height, width, height, width))
    for i, j, u, v in np.ndindex(height, width, *mask):
        # What the position (i, j) says about (y, z).
        y, z = i + u - (mask[0] - 1) // 2, j + v - (mask[1] - 1) // 2
        if 0 <= y < height and 0 <= z < width:
            place = (y, z, i, j) if kind == "collect" else (i, j, y, z)
            out[(slice(None), *place)] = x[:, u * mask[1] + v, i, j]
    return out.reshape(batch, height * width, height, width)


@each_seed
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_psamask(kind, sizes, seed):
    mask, size = SIZES[sizes]
    x = normal(1 + seed, mask[0] * mask[1], *size, seed=seed)
    layer, expected = ops.PSAMask(kind, mask), laid_out(x, kind, mask)
    same(layer(strided(x)), expected)
    same(layer(x.clone().requires_grad_()[:]), expected)
    if seed == 0:
        assert torch.autograd.gradcheck(layer, x.requires_grad_())


@each_precision
@pytest.mark.parametrize("kind", KINDS)
def test_precision_of_psamask(kind, dtype, device):
    assert_precise(ops.PSAMask(kind, (3, 5)), [normal(2, 15, 4, 3)], dtype, device)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_that_no_mask_reaches_stay_empty(kind):
    layer, x = ops.PSAMask(kind, (1, 1)), torch.full((1, 1, 2, 2), torch.inf).requires_grad_()
    out = layer(x)
    assert torch.equal(out.detach().reshape(4, 4), torch.diag(torch.full((4,), torch.inf)))
    out.backward(torch.full_like(out, torch.inf).masked_fill(out.detach() > 0, 2.0))
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert layer(x[:0]).shape == (0, 4, 2, 2)
