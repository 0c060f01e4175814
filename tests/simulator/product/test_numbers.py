"""Random numbers of the read noise against the normal distribution, and however they are asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from aihwkit_nabn.native import CHUNK
from aihwkit_nabn.simulator.product.numbers import NumberStream, _Words


def test_normal_numbers_are_normal() -> None:
    n = 2_000_000
    numbers = NumberStream(lambda: 11).normal_(torch.empty(n)).double()
    # Standard errors of the moments of n normal numbers: sqrt(1, 2, 6, 24 / n). The tails end at 4.33.
    assert abs(numbers.mean()) < 4 / n**0.5
    assert abs(numbers.var() - 1.0) < 4 * (2 / n) ** 0.5
    assert abs(numbers.pow(3).mean()) < 4 * (15 / n) ** 0.5
    assert abs(numbers.pow(4).mean() - 3.0) < 4 * (96 / n) ** 0.5 + 2e-3
    assert stats.kstest(numbers.numpy()[:200_000], "norm").pvalue > 1e-3
    assert 4.3 < numbers.abs().max() < 4.35
    lagged = (numbers[1:] * numbers[:-1]).mean(), (numbers[4:] * numbers[:-4]).mean()
    assert max(map(abs, lagged)) < 4 / n**0.5


def test_uniform_numbers_are_uniform() -> None:
    n = 1_000_000
    numbers = NumberStream(lambda: 3).uniform_(torch.empty(n)).double()
    assert -0.5 < numbers.min() and numbers.max() < 0.5
    assert abs(numbers.mean()) < 4 / (12 * n) ** 0.5
    assert stats.kstest(numbers.numpy()[:200_000] + 0.5, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("sizes", [[37], [1] * 37, [5, 0, 3, 29], [36, 1], [2, 2, 33]])
def test_numbers_do_not_depend_on_how_many_are_asked_for_at_once(sizes: list[int]) -> None:
    stream, whole = NumberStream(lambda: 5), NumberStream(lambda: 5).normal_(torch.empty(37))
    parts = torch.cat([stream.normal_(torch.empty(size)) for size in sizes])
    assert torch.allclose(parts, whole, rtol=1e-6)
    assert not torch.allclose(stream.normal_(torch.empty(37)), whole)


def test_seeds_kinds_and_types() -> None:
    seeds = iter([7, 8])
    stream = NumberStream(lambda: next(seeds))
    normal = stream.normal_(torch.empty(3, 7))
    uniform = stream.uniform_(torch.empty(2, 5))
    assert torch.equal(uniform, NumberStream(lambda: 8).uniform_(torch.empty(2, 5)))
    other = NumberStream(lambda: 8).normal_(torch.empty(3, 7))
    assert not np.allclose(normal, other)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)):
        same = NumberStream(lambda: 7).normal_(torch.empty(3, 7, dtype=dtype))
        assert torch.allclose(same.float(), normal, atol=tolerance) and bool(same.isfinite().all())
    assert NumberStream(lambda: 1).normal_(torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_gives_what_erfinv_gives(threads: int, dtype: torch.dtype) -> None:
    """Each way to look numbers up, on few and on many threads."""
    words = torch.from_numpy(_Words(9).take(1000).view(np.int16).astype(np.int64))
    expected = torch.erfinv((words.double() + 0.5) * 2.0**-15)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        numbers = NumberStream(lambda: 9).normal_(torch.empty(10, 100, dtype=dtype))
    finally:
        torch.set_num_threads(before)
    ratio = numbers.double().view(-1) / expected
    assert torch.allclose(ratio, ratio.mean(), rtol=1e-6) and 1.414 < ratio.mean() < 1.415


def test_generators_are_numpys_and_follow_each_other() -> None:
    words = _Words(4)
    drawn = np.concatenate([words.take(CHUNK - 3), words.take(5), words.take(CHUNK)])
    for number in (0, 1):
        expected = np.random.SFC64(0)
        state = expected.state
        state["state"]["state"] = np.array([*words.key, number, 1], dtype=np.uint64)
        expected.state = state
        part = expected.random_raw(12 + CHUNK // 4)[12:].view(np.uint16)
        assert np.array_equal(drawn[number * CHUNK : (number + 1) * CHUNK], part)


def test_what_is_left_out_is_left_out() -> None:
    whole, part = _Words(4), _Words(4)
    everything = whole.take(4 * CHUNK)
    assert np.array_equal(part.take(10), everything[:10])
    assert part.skip(CHUNK + 1) == 1
    assert np.array_equal(part.take(8), everything[3 * CHUNK : 3 * CHUNK + 8])
