"""Fitting a device: curves through what was found at its levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2 as chi_squared

from aihwkit_nabn.devices.curve import Array, Curve
from aihwkit_nabn.devices.estimates import Levels, devices_of, estimate, levels_of
from aihwkit_nabn.devices.fit_file import DeviceFit
from aihwkit_nabn.devices.measurements import Measurements
from aihwkit_nabn.errors import check_count, check_number

_HIGHEST_DEGREE = 4
#: A polynomial that the levels contradict more than this gives way to a table.
_LEAST_P = 0.01


@dataclass(frozen=True)
class CurveFit:
    """A curve with what is known of it.

    Args:
        curve: The curve.
        errors: Standard errors of its values.
        chi2: Sum of squared deviations from the levels in standard errors; None for a table, which goes through them.
        dof: Levels less coefficients.
    """

    curve: Curve
    errors: tuple[float, ...]
    chi2: float | None = None
    dof: int = 0

    @property
    def p(self) -> float | None:
        """Probability of a larger `chi2` if the polynomial is right."""
        return None if self.chi2 is None else float(chi_squared.sf(self.chi2, self.dof))

    def to_json(self) -> dict[str, Any]:
        """Return what a file says beside the curve's numbers."""
        found: dict[str, Any] = {"standard_errors": list(self.errors)}
        return found if self.chi2 is None else found | {"chi2": self.chi2, "dof": self.dof, "p": self.p}


@dataclass(frozen=True)
class FittedDevice:
    """A fit with what it was made from.

    Args:
        fit: The device.
        curves: By the name of a curve in `fit`, how well it is known.
        levels: What was found at each level.
        rows: The measurements.
    """

    fit: DeviceFit
    curves: dict[str, CurveFit]
    levels: Levels
    rows: Measurements

    def about(self) -> dict[str, Any]:
        """Return what a file says of the measurements, as JSON values."""
        rows, levels = self.rows, self.levels
        return {
            "file": rows.source,
            "rows": len(rows.target),
            "devices": int(levels.devices.sum()),
            "unit": rows.unit,
            "columns": list(rows.columns),
            "columns_not_used": list(rows.unused),
            "last_reading_s": float(rows.seconds.max()) or None,
            "devices_read_as_0": levels.zeros,
            "share_beyond_2_spreads": levels.beyond,
            "levels": [
                {"target_us": float(target), "devices": int(count)}
                | {
                    name: [float(values[index]), float(levels.errors[name][index])]
                    for name, values in levels.values.items()
                    if np.isfinite(values[index])
                }
                for index, (target, count) in enumerate(zip(levels.target_us, levels.devices, strict=True))
            ],
        }


def fit_device(rows: Measurements, *, g_max_us: float | None = None, bins: int | None = None) -> FittedDevice:
    """Fit a device to measurements.

    What is fitted, as functions of the target, follows from the columns:

    * programming error: mean and standard deviation of the first reading less the target, always;
    * read noise: the relative standard deviation of repeated readings, of one device at one time;
    * drift: ``g(t) = g(t_1) (t / t_1)^-nu``, t_1 the time of the first reading; mean and standard deviation of nu from
      the slopes of single devices, where these were read at several times.

    Each function is the polynomial, of up to fourth degree, with the least BIC; or, where the levels contradict it
    (chi-squared test, p < 0.01), or where there are only two, a table of the levels. Polynomials are fitted by least
    squares, weighted with the levels' standard errors, which are from a bootstrap over devices.

    Args:
        rows: The measurements.
        g_max_us: Conductance of the largest weight, uS; None: the largest target.
        bins: Group targets into so many levels of about as many rows; None: each target is a level.

    Raises:
        NabnError: there are too few levels, or devices in one; or nothing was measured at `g_max_us`.
    """
    if bins is not None:
        check_count("bins", bins, minimum=2)
    largest = float(rows.target.max())
    if g_max_us is None:
        g_max_us = largest
    else:
        check_number(
            "g_max", g_max_us, exclusive_minimum=0.0, maximum=largest * (1 + 1e-9), meaning="in uS, and measured"
        )
    levels = estimate(*devices_of(rows, levels_of(rows, bins)))
    curves = {
        name: _best_curve(levels, name, g_max_us)
        for name, values in levels.values.items()
        if np.isfinite(values).sum() >= 2
    }
    fit = DeviceFit(
        g_max_us=g_max_us,
        first_reading_s=levels.first_s if "exponent" in curves else None,
        **{name: curve.curve for name, curve in curves.items()},
    )
    return FittedDevice(fit, curves, levels, rows)


_SIGNED = ("offset_us", "exponent")


def _best_curve(levels: Levels, name: str, g_max_us: float) -> CurveFit:
    known = np.isfinite(levels.values[name])
    x, values, errors = (
        array[known] for array in (levels.target_us / g_max_us, levels.values[name], levels.errors[name])
    )
    price = math.log(levels.devices[known].sum())  # of a coefficient
    # Levels without any scatter (all devices at 0) would outweigh all others.
    errors = np.maximum(errors, max(1e-3 * float(np.median(errors)), 1e-9 * float(np.abs(values).max()), 1e-300))
    found = [
        fit
        for degree in range(min(_HIGHEST_DEGREE, len(x) - 2) + 1)
        if (fit := _polynomial(x, values, errors, degree, signed=name in _SIGNED)) is not None
    ]
    best = min(found, key=lambda fit: (fit.chi2 or 0.0) + price * len(fit.curve.values), default=None)
    if best is None or (best.p or 0.0) < _LEAST_P:
        return CurveFit(Curve("table", tuple(map(float, x)), tuple(map(float, values))), tuple(map(float, errors)))
    return best


def _polynomial(x: Array, values: Array, errors: Array, degree: int, *, signed: bool) -> CurveFit | None:
    """Return the weighted fit of one degree; None where a spread would be negative."""
    powers = np.vander(x, degree + 1, increasing=True)
    weighted = errors
    for _ in range(1 if signed else 3):
        inverse = np.linalg.pinv(powers / weighted[:, None])
        coefficients = inverse @ (values / weighted)
        fitted = powers @ coefficients
        if not signed:
            # A spread that came out small by chance has a small standard error too: judge it by the fitted one.
            if (fitted <= 0).any() or (values <= 0).any():
                return None
            weighted = errors * fitted / values
    curve = Curve("polynomial", (float(x[0]), float(x[-1])), tuple(map(float, coefficients)))
    if not signed and (curve(np.linspace(x[0], x[-1], 101)) < 0).any():
        return None
    chi2 = float((((values - fitted) / weighted) ** 2).sum())
    spread = np.sqrt((inverse**2).sum(1))
    return CurveFit(curve, tuple(map(float, spread)), chi2, len(x) - degree - 1)
