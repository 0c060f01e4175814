"""What the devices of each level do on average, and how sure that is: moments, and a bootstrap over the devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_ndtr

from aihwkit_nabn.devices.curve import Array
from aihwkit_nabn.devices.measurements import Measurements
from aihwkit_nabn.errors import NabnError

#: Fewer devices than this say too little of a spread.
FEWEST = 5
_RESAMPLES = 200
#: Quantities of a level, in this order everywhere.
QUANTITIES = ("offset_us", "spread_us", "exponent", "exponent_spread", "read_spread")


@dataclass(frozen=True)
class Devices:
    """One entry per programmed device; all arrays ``[devices]``.

    Args:
        level: Which level it belongs to.
        target: uS.
        programmed: Mean of its first readings, uS.
        n_first: How many those are.
        exponent: Slope of -log conductance over log time; NaN where there are fewer than two times or a reading is 0.
        leverage: Variance of `exponent` for a relative variance of 1 of a single reading.
        read_sum: Sum of squared relative deviations of repeated readings from their mean, ``[2, devices]``: of the
            first readings, and of all.
        read_dof: How many of them are independent, ``[2, devices]``.
    """

    level: NDArray[np.int64]
    target: Array
    programmed: Array
    n_first: Array
    exponent: Array
    leverage: Array
    read_sum: Array
    read_dof: Array


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What was found at each level.

    Args:
        target_us: Mean target, ``[levels]``.
        devices: How many, ``[levels]``.
        values: By quantity, ``[levels]``; NaN where the rows do not say.
        errors: Their standard errors.
        first_s: Seconds after programming of the first reading; the median over devices.
        zeros: Devices that were read as 0 at a later time, and have no exponent.
        beyond: Share of devices whose error is larger than two spreads of their level.
    """

    target_us: Array
    devices: Array
    values: dict[str, Array]
    errors: dict[str, Array]
    first_s: float
    zeros: int
    beyond: float


def levels_of(rows: Measurements, bins: int | None = None) -> NDArray[np.int64]:
    """Return which level each row belongs to: rows with the same target, or one of `bins` groups of equal size.

    Raises:
        NabnError: there is one level only.
    """
    distinct, index = np.unique(rows.target, return_inverse=True)
    if bins is not None and bins < len(distinct):
        edges = np.quantile(rows.target, np.linspace(0, 1, bins + 1)[1:-1])
        _, index = np.unique(np.searchsorted(edges, rows.target, side="right"), return_inverse=True)
    if index.max(initial=0) == 0:
        raise NabnError(
            f"target must have at least two levels, got {distinct[0]:g} uS in every row"
            if len(distinct) == 1
            else f"bins must leave at least two levels, got {bins}"
        )
    return index


def devices_of(rows: Measurements, level: NDArray[np.int64]) -> tuple[Devices, float]:
    """Return each programmed device, and the seconds after programming at which they were first read.

    Raises:
        NabnError: a device was first read at another time than the others.
    """
    table = pd.DataFrame(
        {"level": level, "device": rows.device, "target": rows.target, "seconds": rows.seconds, "g": rows.conductance}
    )
    # A device that was programmed to several targets counts once for each.
    keys = ["device", "level", "target"]
    at = table.groupby([*keys, "seconds"])["g"].agg(["mean", "count", "var"]).reset_index()
    at["n"] = at.groupby(keys, sort=False).ngroup()
    first = at.drop_duplicates("n")
    count = len(first)
    first_s = float(first["seconds"].median())
    late = first[(first["seconds"] > 2 * first_s) | (first["seconds"] < first_s / 2)]
    if len(late):
        row = late.iloc[0]
        raise NabnError(
            "every device must be read first at about the same time, which is when it counts as programmed: most at "
            f"{first_s:g} s, device {int(row['device']) + 1} (in the order of the file) with target "
            f"{row['target']:g} uS at {row['seconds']:g} s"
        )
    again = at[(at["count"] > 1) & (at["mean"] > 0)]
    dof = again["count"] - 1.0
    sums = dof * again["var"] / again["mean"] ** 2
    at_first = again.index.isin(first.index)
    exponent, leverage = _exponents(at, count)
    return Devices(
        level=first["level"].to_numpy(),
        target=first["target"].to_numpy(),
        programmed=first["mean"].to_numpy(),
        n_first=first["count"].to_numpy(float),
        exponent=exponent,
        leverage=leverage,
        read_sum=np.stack([np.bincount(again["n"], sums * part, count) for part in (at_first, 1.0)]),
        read_dof=np.stack([np.bincount(again["n"], dof * part, count) for part in (at_first, 1.0)]),
    ), first_s


def _exponents(at: pd.DataFrame, count: int) -> tuple[Array, Array]:
    """Return each device's drift exponent by least squares over its times, and that figure's `leverage`."""
    n = at["n"].to_numpy()
    mean = at["mean"].to_numpy()
    dead = np.bincount(n, mean <= 0, count) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log(at["seconds"].to_numpy())
        times = np.bincount(n, minlength=count)
        x = x - (np.bincount(n, x, count) / times)[n]
        spread = np.bincount(n, x * x, count)
        exponent = -np.bincount(n, x * np.log(mean), count) / spread
        leverage = np.bincount(n, x * x / at["count"].to_numpy(), count) / spread**2
    exponent[dead | ~(spread > 1e-12)] = np.nan
    return exponent, leverage


def estimate(devices: Devices, first_s: float, *, seed: int = 0) -> Levels:
    """Return what each level's devices do, with standard errors from a bootstrap over its devices.

    Readings have two parts in them, which are told apart where there are repeated readings: the variance of the read
    noise is taken off those of programming and of the exponents. Where readings of 0 occur, offset and spread are
    those of the normal distribution whose part below 0 was cut off (maximum likelihood).

    Raises:
        NabnError: a level has fewer than `FEWEST` devices.
    """
    count = int(devices.level.max()) + 1
    rng = np.random.default_rng(seed)
    values, errors = np.full((2, len(QUANTITIES), count), np.nan)
    target, number, beyond = np.zeros(count), np.zeros(count), 0
    for level in range(count):
        members = np.flatnonzero(devices.level == level)
        target[level], number[level] = devices.target[members].mean(), len(members)
        if len(members) < FEWEST:
            raise NabnError(
                f"every level must have at least {FEWEST} devices, got {len(members)} at target {target[level]:g} uS; "
                "--bins N groups neighbouring targets"
            )
        values[:, level] = _moments(devices, members)
        drawn = [_moments(devices, rng.choice(members, len(members))) for _ in range(_RESAMPLES)]
        known = ~np.isnan(values[:, level])
        errors[known, level] = np.nanstd(np.array(drawn)[:, known], axis=0, ddof=1)
        error = devices.programmed[members] - devices.target[members]
        beyond += int((np.abs(error - values[0, level]) > 2 * values[1, level]).sum())
    has_times = np.isfinite(devices.leverage)
    return Levels(
        target_us=target,
        devices=number,
        values=dict(zip(QUANTITIES, values, strict=True)),
        errors=dict(zip(QUANTITIES, errors, strict=True)),
        first_s=first_s,
        zeros=int((has_times & np.isnan(devices.exponent)).sum()),
        beyond=beyond / len(devices.target),
    )


def _moments(devices: Devices, members: NDArray[np.int64]) -> list[float]:
    """Return the `QUANTITIES` of some devices; NaN where they do not say."""
    sums, dof = devices.read_sum[:, members].sum(1), devices.read_dof[:, members].sum(1)
    read = float(sums[1] / dof[1]) if dof[1] > 0 else math.nan
    in_all = 0.0 if math.isnan(read) else read
    in_first = float(sums[0] / dof[0]) if dof[0] > 0 else in_all
    programmed, target = devices.programmed[members], devices.target[members]
    offset, spread = _programming(programmed, target)
    spread = math.sqrt(max(spread**2 - in_first * float((programmed**2 / devices.n_first[members]).mean()), 0.0))
    members = members[np.isfinite(devices.exponent[members])]
    if len(members) < 2:
        return [offset, spread, math.nan, math.nan, math.sqrt(read)]
    # The slopes of devices that conduct far less than others are mostly noise, and matter least on a chip.
    exponent, conducts = devices.exponent[members], devices.programmed[members]
    weight = np.minimum(2.0 * conducts / np.median(conducts), 1.0) ** 2
    weight /= weight.sum()
    mean = float(weight @ exponent)
    independent = max(1.0 - float(weight @ weight), 1e-12)
    variance = weight @ ((exponent - mean) ** 2) / independent - in_all * (weight @ devices.leverage[members])
    return [offset, spread, mean, math.sqrt(max(float(variance), 0.0)), math.sqrt(read)]


def _programming(programmed: Array, target: Array) -> tuple[float, float]:
    """Return mean and standard deviation of the programming error of devices that cannot conduct less than nothing."""
    error = programmed - target
    seen = programmed > 0
    if seen.all() or not seen.any() or np.ptp(error[seen]) == 0:
        return float(error.mean()), float(error.std(ddof=1))

    scale = error.std()
    # Those read as 0 were at most at -target.
    low, times = np.unique(error[~seen] / scale, return_counts=True)
    n, first, second = int(seen.sum()), error[seen].mean() / scale, error[seen].var() / scale**2

    def loss(parameters: Array) -> float:
        mean, log_spread = parameters
        squares = 0.5 * n * (second + (first - mean) ** 2) * math.exp(-2 * log_spread)
        return float(squares + n * log_spread - times @ log_ndtr((low - mean) * math.exp(-log_spread)))

    start = np.array([error.mean() / scale, 0.0])
    mean, log_spread = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-4}).x
    return float(mean * scale), float(math.exp(log_spread) * scale)
