"""The compiled sums against float64 numpy and against torch's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from aihwkit_nabn import native
from aihwkit_nabn.calibration import Moments

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no compiled sums: {native.why_not()}")

SHAPES = [
    (1, 1),
    (3, 15),
    (5, 16),
    (7, 63),
    (2, 64),
    (9, 65),
    (4, 2047),
    (3, 2048),
    (2, 2049),
    (2, 300_001),
    (5000, 49),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_float64(shape: tuple[int, int], threads: int) -> None:
    """Single precision adds up no more than 32 values one after the other."""
    x = 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) + 0.5
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        sums, squares = native.sum_runs(x)
    finally:
        torch.set_num_threads(before)
    exact = x.double().numpy()
    np.testing.assert_allclose(sums.numpy(), exact.sum(1), rtol=0, atol=3e-6 * np.abs(exact).sum(1).max())
    np.testing.assert_allclose(squares.numpy(), (exact**2).sum(1), rtol=3e-6)


def test_threads_do_not_matter() -> None:
    x, before, found = torch.randn(300, 3136), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(native.sum_runs(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_what_is_not_finite_is_seen(bad: float, place: int) -> None:
    x = torch.randn(4, 3, 10, 10)
    x[2, 1].view(-1)[place] = bad
    assert not Moments.of(x, 1).is_finite


@pytest.mark.parametrize("offset", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("shape", [(4, 6, 8, 8), (3, 1, 70, 90), (2, 5, 33), (40, 3, 4, 4, 4), (6, 5, 40)])
def test_moments_are_those_of_torch(shape: tuple[int, ...], offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + offset
    found = []
    for way in ("1", "0"):
        monkeypatch.setenv("NABN_NATIVE", way)
        found.append(Moments.of(x, 1))
    compiled, torchs = found
    assert compiled.count == torchs.count
    torch.testing.assert_close(compiled.mean, torchs.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled.var, torchs.var, rtol=2e-5, atol=0)
