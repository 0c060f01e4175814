from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import estimate, paired_difference, recovered_share

VALUES = [88.7, 89.4, 87.9, 90.1, 88.2]
BASELINE = [80.5, 81.9, 78.8, 83.0, 80.1]


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_interval_is_scipys(n: int, confidence: float) -> None:
    got = estimate(VALUES[:n], confidence)
    low, high = stats.t.interval(confidence, n - 1, loc=np.mean(VALUES[:n]), scale=stats.sem(VALUES[:n]))
    assert (got.n, got.mean) == (n, pytest.approx(np.mean(VALUES[:n])))
    assert got.std == pytest.approx(np.std(VALUES[:n], ddof=1))
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert got.half_width == pytest.approx((high - low) / 2)


def test_paired_difference_is_scipys_paired_t_test() -> None:
    got = paired_difference(VALUES, BASELINE)
    expected = stats.ttest_rel(VALUES, BASELINE).confidence_interval(0.95)
    assert (got.low, got.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    unpaired = math.hypot(estimate(VALUES).half_width, estimate(BASELINE).half_width)
    assert got.half_width < unpaired


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(5.0, 2.0, size=(2000, 4))
    covered = sum(e.low <= 5.0 <= e.high for e in map(estimate, draws)) / len(draws)
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(draws))


def test_one_value_has_no_spread() -> None:
    got = estimate([91.6])
    assert got.mean == 91.6
    assert math.isnan(got.std) and math.isnan(got.low) and math.isnan(got.high) and math.isnan(got.half_width)


def test_equal_values_have_exactly_no_spread() -> None:
    got = estimate([0.1, 0.1, 0.1])
    assert got.std == 0.0 and got.low == got.high


def test_recovered_share() -> None:
    uncalibrated = estimate(BASELINE)
    assert recovered_share(uncalibrated.mean, uncalibrated, 91.6) == 0.0
    assert recovered_share(91.6, uncalibrated, 91.6) == pytest.approx(1.0)
    assert recovered_share(uncalibrated.mean - 1, uncalibrated, 91.6) < 0


@pytest.mark.parametrize(
    ("values", "digital"),
    [
        pytest.param([91.0, 92.0, 91.5], 91.6, id="digital within the interval"),
        pytest.param([95.0, 95.1, 95.2], 91.6, id="better than digital"),
        pytest.param([80.0], 91.6, id="one chip"),
        pytest.param([0.3, 0.3], 0.1 + 0.2, id="rounding"),
    ],
)
def test_no_share_of_a_loss_that_is_not_shown(values: list[float], digital: float) -> None:
    assert math.isnan(recovered_share(90.0, estimate(values), digital))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0], [2.0]]])
def test_values_must_be_finite_numbers(values: list[float]) -> None:
    with pytest.raises(NabnError, match="values must be one or more finite numbers"):
        estimate(values)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, math.nan])
def test_confidence_range(confidence: float) -> None:
    with pytest.raises(NabnError, match="confidence must be"):
        estimate(VALUES, confidence)


def test_pairs_must_pair() -> None:
    with pytest.raises(NabnError, match="5 and 4 numbers"):
        paired_difference(VALUES, BASELINE[:-1])
