"""The compiled moments against float64 numpy and against torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from aihwkit_nabn import native
from aihwkit_nabn.calibration import Moments

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no compiled moments: {native.why_not()}")

SHAPES = [
    *((1, 1, 1), (2, 3, 7), (1, 5, 8), (3, 7, 31), (2, 1, 32), (1, 9, 33), (2, 4, 2047), (3, 1, 2048), (1, 2, 2049)),
    *((1, 2, 300_001), (50, 100, 49)),
]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("offset", [0.0, 0.5, 30.0, -1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_float64(shape: tuple[int, int, int], offset: float) -> None:
    """Single precision adds up no more than 64 values one after the other."""
    x = 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + offset
    mean, m2 = (v.numpy() for v in native.channel_moments(x, 100.0))
    exact = np.moveaxis(x.double().numpy(), 1, 0).reshape(shape[1], -1)
    np.testing.assert_allclose(mean, exact.mean(1), rtol=0, atol=3e-6 * np.abs(exact).mean())
    np.testing.assert_allclose(m2, exact.var(1) * exact.shape[1], rtol=2e-4, atol=1e-6 * exact.shape[1])


def test_threads_do_not_matter(set_threads: Callable[[int], None]) -> None:
    x, found = torch.randn(3, 100, 3136) + 4.0, []
    for n_threads in (1, 2, 4):
        set_threads(n_threads)
        found.append(torch.stack(native.channel_moments(x, 100.0)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_what_is_not_finite_is_seen(bad: float, place: int) -> None:
    x = torch.randn(4, 3, 10, 10)
    x[2, 1].view(-1)[place] = bad
    assert not Moments.of(x, 1).is_finite


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 6, 8, 8), (3, 1, 70, 90), (2, 5, 33), (40, 3, 4, 4, 4), (6, 5, 40)])
def test_moments_are_those_of_torch(
    shape: tuple[int, ...], offset: float, both_ways: Callable[..., list[Moments]]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + offset
    compiled, torchs = both_ways(lambda: Moments.of(x, 1))
    assert compiled.count == torchs.count
    torch.testing.assert_close(compiled.mean, torchs.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled.var, torchs.var, rtol=2e-5, atol=0)
