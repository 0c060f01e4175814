"""Moments against float64 numpy over the concatenation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from aihwkit_nabn.calibration import Moments
from aihwkit_nabn.errors import CalibrationError

CASES = {
    "uneven 2-d maps": ([(5, 3, 7, 4), (1, 3, 2, 9), (2, 3, 1, 1)], 1),
    "batch of one": ([(1, 4, 3, 3)], 1),
    "1x1 maps": ([(6, 5, 1, 1), (2, 5, 1, 1)], -3),
    "a single value": ([(1, 5, 1, 1)], 1),
    "linear": ([(7, 4), (1, 4)], -1),
    "linear over tokens": ([(3, 5, 4), (2, 1, 4)], -1),
    "1-d": ([(3, 4, 11), (2, 4, 5)], -2),
    "3-d": ([(2, 3, 2, 4, 5)], -4),
    "unbatched map": ([(3, 6, 5), (3, 2, 2)], -3),
    "empty batches between": ([(0, 3, 4, 4), (2, 3, 4, 4), (0, 3, 4, 4), (3, 3, 4, 4)], 1),
    "long runs": ([(2, 2, 260, 300), (40_000, 2, 1, 1)], 1),
}


def numpy_moments(tensors, channel_dim):
    columns = [np.moveaxis(t.double().numpy(), channel_dim, -1).reshape(-1, t.shape[channel_dim]) for t in tensors]
    rows = np.concatenate(columns)
    return rows.shape[0], rows.mean(0), rows.var(0)


def check(moments, tensors, channel_dim, rtol=1e-5):
    count, mean, var = numpy_moments(tensors, channel_dim)
    assert moments.count == count
    assert moments.mean.dtype == moments.var.dtype == torch.float64
    np.testing.assert_allclose(moments.mean.numpy(), mean, rtol=rtol, atol=rtol * np.sqrt(var).max())
    np.testing.assert_allclose(moments.var.numpy(), var, rtol=rtol, atol=1e-12)


def gathered(tensors, channel_dim):
    total = Moments.empty(tensors[0].shape[channel_dim])
    for tensor in tensors:
        assert total.merge(Moments.of(tensor, channel_dim)) is total
    return total


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (3.0, 0.5), (-40.0, 2.0), (0.0, 1e-4), (1e3, 1e3)])
@pytest.mark.parametrize("name", CASES)
def test_equal_numpy_over_the_concatenation(name, offset, scale):
    shapes, channel_dim = CASES[name]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) * scale + offset for shape in shapes]
    for tensor in tensors:
        tensor.select(channel_dim, 0).mul_(3.0)
    check(gathered(tensors, channel_dim), tensors, channel_dim)
    check(gathered([t.double() for t in tensors], channel_dim), [t.double() for t in tensors], channel_dim, rtol=1e-10)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
def test_memory_layouts(layout):
    x = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    x = {
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "transposed": lambda: x.transpose(2, 3),
        "strided": lambda: x[:, :, ::2, 1:],
    }[layout]()
    check(Moments.of(x, 1), [x.contiguous()], 1)
    check(Moments.of(x, -3), [x.contiguous()], 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_other_types_are_widened(dtype):
    x = (torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    check(Moments.of(x, 1), [x], 1)


def test_a_mean_far_above_the_spread():
    x = torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 1e4
    check(Moments.of(x, 1), [x], 1)
    x[:, 1] -= 1e4  # beside an ordinary channel
    check(gathered(list(x.split(3)), 1), [x], 1)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567, 1e-20])
def test_a_constant_channel_has_no_variance(value):
    x = torch.randn(5, 3, 17, 13, generator=torch.Generator().manual_seed(0))
    x[:, 1] = value
    moments = Moments.of(x, 1)
    check(moments, [x], 1)
    assert 0 <= moments.var[1] <= 1e-12 * value**2
    assert moments.mean[1] == pytest.approx(float(torch.tensor(value)), rel=1e-7)


def test_nothing():
    for moments in (Moments.empty(3), Moments.of(torch.empty(0, 3, 4), 1), Moments.empty(3).merge(Moments.empty(3))):
        assert moments.count == 0
        assert torch.equal(moments.mean, torch.zeros(3).double()) and torch.equal(moments.var, torch.zeros(3).double())


def test_merging_in_any_order_and_grouping():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 3, generator=generator) * n + n for n in (4, 1, 7, 2)]
    for order in itertools.permutations(tensors):
        check(gathered(order, -1), tensors, -1)
    left = gathered(tensors[:2], -1).merge(gathered(tensors[2:], -1))
    right = gathered(tensors[:1], -1).merge(gathered(tensors[1:3], -1).merge(gathered(tensors[3:], -1)))
    torch.testing.assert_close(left.mean, right.mean)
    torch.testing.assert_close(left.var, right.var)


def test_affine():
    x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))
    scale, offset = torch.tensor([2.0, -0.5, 0.0]), torch.tensor([1.0, 0.0, -3.0])
    check(Moments.of(x, 1).affine(scale, offset), [x * scale.view(-1, 1) + offset.view(-1, 1)], 1)


def test_inputs_that_need_gradients_are_left_alone():
    x = torch.randn(6, 3, requires_grad=True)
    moments = Moments.of(x, 1)
    assert not moments.mean.requires_grad and x.grad is None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named(bad):
    x = torch.randn(6, 3)
    Moments.of(x, 1).check_finite("layer 'a'")
    x[2, 1] = bad
    with pytest.raises(CalibrationError, match="layer 'a' holds NaN or infinite values on the calibration set"):
        Moments.of(x, 1).check_finite("layer 'a'")


@pytest.mark.parametrize("exponent", [-36, -22, 19, 30])
def test_moments_of_very_small_and_large_values(exponent):
    x = torch.randn(4, 6, 9, 11) * 10.0**exponent
    x[:, 2] = 0.0
    x[:, 3] = 1.0
    got, wide = Moments.of(x, 1), x.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(got.mean, wide.mean(1), rtol=1e-6, atol=1e-7 * float(wide[0].std()))
    torch.testing.assert_close(got.var[:2], wide.var(1, correction=0)[:2], rtol=1e-6, atol=0.0)
    assert (got.var[2:4] == 0).all()
