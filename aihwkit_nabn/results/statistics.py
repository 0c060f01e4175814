"""Mean, spread and Student-t interval over chips, and differences paired by chip: pure functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from aihwkit_nabn.errors import NabnError, check_number

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a few measurements say about their mean.

    Attributes:
        n: Number of measurements.
        mean: Their mean.
        std: Sample standard deviation (``ddof=1``); NaN for one measurement.
        low: Lower end of the mean's confidence interval; NaN for one measurement.
        high: Upper end of it.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width; NaN for one measurement."""
        return (self.high - self.low) / 2


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return mean, standard deviation and Student-t confidence interval of independent measurements.

    Args:
        values: At least one finite number, e.g. one accuracy per chip.
        confidence: Probability that the interval covers the mean, between 0 and 1, for normally distributed values.

    Raises:
        NabnError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    check_number(
        "confidence",
        confidence,
        exclusive_minimum=0.0,
        maximum=1.0,
        meaning="the probability that the interval holds the mean",
    )
    if confidence == 1.0:
        raise NabnError("confidence must be below 1, got 1.0")
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise NabnError(f"values must be one or more finite numbers, got {values!r}")
    n, mean = int(numbers.size), float(numbers.mean())
    if n == 1:
        return Estimate(n=1, mean=mean, std=_NAN, low=_NAN, high=_NAN)
    # numpy leaves a rounding residue of about 1e-17 where all values are the same; that spread is zero.
    std = 0.0 if (numbers == numbers[0]).all() else float(numbers.std(ddof=1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * std / math.sqrt(n)
    return Estimate(n=n, mean=mean, std=std, low=mean - half, high=mean + half)


def paired_difference(values: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the estimate of ``values - baseline``, chip by chip.

    What a chip does to both alike cancels; two independent means would count it twice.

    Args:
        values: One measurement per chip.
        baseline: The other method's measurement on the same chips, in the same order.
        confidence: As for `estimate`.

    Raises:
        NabnError: the two have different lengths, or as for `estimate`.
    """
    if len(values) != len(baseline):
        raise NabnError(f"values and baseline must pair up, got {len(values)} and {len(baseline)} numbers")
    return estimate([a - b for a, b in zip(values, baseline, strict=True)], confidence)


def recovered_share(mean: float, uncalibrated: Estimate, digital: float) -> float:
    """Return which part of what the chips lost a method brings back.

    Args:
        mean: The method's mean.
        uncalibrated: Estimate of the same chips without calibration.
        digital: The digital model's value.

    Returns:
        ``(mean - uncalibrated) / (digital - uncalibrated)``: 1 is all, 0 nothing, negative worse than nothing. NaN
        where no loss is shown: one chip only, or the digital value not above the uncalibrated interval.
    """
    loss = digital - uncalibrated.mean
    rounding = 1e-9 * max(1.0, abs(digital))
    if not digital > uncalibrated.high or loss <= rounding:
        return _NAN
    return (mean - uncalibrated.mean) / loss
