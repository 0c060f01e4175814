from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn import OutputAlignment

SHAPES = [
    ((4, 3), -1),
    ((2, 5, 3), -1),
    ((3,), -1),
    ((2, 3, 4), -2),
    ((3, 4), -2),
    ((2, 3, 4, 5), -3),
    ((3, 4, 5), -3),
    ((0, 3, 4, 5), -3),
    ((2, 3, 1, 1), -3),
    ((2, 3, 2, 3, 4), -4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "channel_dim"), SHAPES)
def test_is_a_scale_and_an_offset_per_channel(shape, channel_dim, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    scale, offset = torch.randn(2, 3, generator=generator, dtype=dtype)
    alignment = OutputAlignment(3, channel_dim)
    assert alignment(x) is x and not alignment.is_set
    alignment.set(scale, offset)
    expected = (x.movedim(channel_dim, -1) * scale + offset).movedim(-1, channel_dim)
    torch.testing.assert_close(alignment(x), expected)
    alignment.enabled = False
    assert alignment(x) is x
    alignment.enabled = True
    alignment.reset()
    assert alignment(x) is x


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("shape", "channel_dim"), [((5, 6), -1), ((2, 6, 4), -2), ((6, 4, 5), -3), ((3, 6, 4, 5), -3)])
def test_an_input_gain_goes_with_the_mean_of_each_group(shape, channel_dim, groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    scale, offset, gain = torch.randn(3, 6, generator=generator)
    narrow = list(shape)
    narrow[channel_dim] = groups
    mean = torch.randn(narrow, generator=generator)
    alignment = OutputAlignment(6, channel_dim)
    alignment.set(scale, offset, gain)
    wide = mean.movedim(channel_dim, -1).repeat_interleave(6 // groups, -1)
    last = x.movedim(channel_dim, -1)
    expected = (last * scale + offset + wide * gain).movedim(-1, channel_dim)
    for overwrite in (False, True):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                own = x.clone()
                torch.testing.assert_close(
                    alignment(own, SimpleNamespace(mean=lambda: mean), overwrite=overwrite), expected
                )
                assert overwrite or torch.equal(own, x)
    alignment.scale = alignment.offset = None  # folded
    folded = (last + wide * gain).movedim(-1, channel_dim)
    torch.testing.assert_close(alignment(x, SimpleNamespace(mean=lambda: mean)), folded)
    torch.testing.assert_close(alignment(x.clone(), SimpleNamespace(mean=lambda: mean), overwrite=True), folded)
    assert alignment(x) is x and alignment.is_set
    alignment.enabled = False
    assert alignment(x, SimpleNamespace(mean=lambda: mean)) is x


def test_channels_last_inputs():
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    alignment = OutputAlignment(3, -3)
    alignment.set(torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(alignment(x), alignment(x.contiguous()))


def test_gradients_reach_scale_and_offset():
    alignment = OutputAlignment(3, -3)
    scale, offset = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    alignment.set(scale, offset)
    x = torch.randn(2, 3, 4, 5)
    alignment(x).square().sum().backward()
    torch.testing.assert_close(scale.grad, 2 * x.square().sum((0, 2, 3)))
    torch.testing.assert_close(offset.grad, 2 * x.sum((0, 2, 3)))


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (torch.ones(2), torch.zeros(3), r"alignment scale must have shape \(3,\), got \(2,\)"),
        (torch.ones(3), torch.zeros(()), r"alignment offset must have shape \(3,\)"),
        (torch.tensor([1.0, torch.inf, 1.0]), torch.zeros(3), "alignment scale must be finite"),
        (torch.ones(3), torch.tensor([1.0, torch.nan, 1.0]), "alignment offset must be finite"),
    ],
)
def test_impossible_values_are_refused(scale, offset, message):
    alignment = OutputAlignment(3, -1)
    with pytest.raises(NabnError, match=message):
        alignment.set(scale, offset)
    assert not alignment.is_set


def test_state_dict_round_trip():
    alignment, fresh = OutputAlignment(3, -1), OutputAlignment(3, -1)
    assert not alignment.state_dict()
    alignment.set(torch.rand(3), torch.rand(3))
    fresh.load_state_dict(alignment.state_dict())
    assert torch.equal(fresh.scale, alignment.scale) and torch.equal(fresh.offset, alignment.offset)
    assert fresh.input_gain is None
    alignment.set(torch.rand(3), torch.rand(3), torch.rand(3))
    fresh.load_state_dict(alignment.state_dict())
    assert torch.equal(fresh.input_gain, alignment.input_gain)
    fresh.load_state_dict(OutputAlignment(3, -1).state_dict())
    assert not fresh.is_set
