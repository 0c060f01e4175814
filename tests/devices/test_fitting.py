"""A fit finds the device that the rows were drawn from.

Tolerance: 5 % of each curve at every level. That is two standard errors and a half or more; seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial import Polynomial

from aihwkit_nabn.devices import FittedDevice, Measurements, fit_device
from aihwkit_nabn.devices.estimates import devices_of, estimate, levels_of
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.measured import MeasuredNoise
from aihwkit_nabn.noise.reram import ReRAMWan
from aihwkit_nabn.seeding import isolated_rng
from tests.devices.drawn import Array, Function, made_up, of_pcm, of_reram_wan, rows_of

TIMES = np.array([10.0, 1e2, 1e4, 1e6])


def assert_found(device: FittedDevice, name: str, expected: Array, x: Array) -> None:
    np.testing.assert_allclose(getattr(device.fit, name)(x), expected, rtol=0.05, err_msg=name)


@pytest.mark.slow
def test_pcm_is_found() -> None:
    levels, times = np.linspace(0.0, 25.0, 6), np.array([0.0, 1e3, 1e5, 1e7])
    device = fit_device(of_pcm(levels, 3000, times, 5))
    x = levels / 25.0
    logarithm = np.log(np.maximum(x, 1e-7))
    assert_found(device, "spread_us", 0.26348 + 1.9650 * x - 1.1731 * x**2, x)
    assert_found(device, "exponent", np.clip(-0.0155 * logarithm + 0.0244, 0.049, 0.1), x)
    assert_found(device, "exponent_spread", np.clip(-0.0125 * logarithm[1:] - 0.0059, 0.008, 0.045), x[1:])
    # At target 0 read noise is as large as the signal and cut off at 0. It grows with time: its root mean square.
    growth = np.sqrt(np.mean(np.log((times + 20.0 + 250e-9) / 500e-9)))
    assert_found(device, "read_spread", growth * 0.0088 / x[1:] ** 0.65, x[1:])
    assert abs(device.fit.offset_us(x)).max() < 0.05 * 0.26348 and device.fit.first_reading_s == 20.0


@pytest.mark.slow
def test_reram_wan_is_found() -> None:
    levels = np.linspace(0.0, 40.0, 11)
    device = fit_device(of_reram_wan(levels, 2000, seed=1))
    assert device.fit.spread_us.form == "polynomial" and device.fit.exponent is device.fit.read_spread is None
    assert_found(device, "spread_us", ReRAMWan().sigma_us(torch.tensor(levels), 0.0).numpy(), levels / 40.0)


def random_device(seed: int) -> dict[str, Function]:
    """Return curves of up to third degree through positive values."""
    rng = np.random.default_rng(seed)
    places = np.linspace(0.0, 1.0, 4)

    def curve(low: float, high: float, degree: int) -> Function:
        return Polynomial.fit(places, rng.uniform(low, high, 4), degree)

    return {
        "offset_us": curve(-1.0, 1.0, 1),
        "spread_us": curve(0.6, 1.5, 2),
        "exponent": curve(0.02, 0.1, 1),
        "exponent_spread": curve(0.008, 0.02, 1),
        "read_spread": curve(0.01, 0.04, 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_made_up_devices_are_found(seed: int) -> None:
    levels = np.linspace(5.0, 60.0, 7)
    truth = random_device(seed)
    device = fit_device(made_up(levels, 2000, TIMES, 4, **truth, seed=seed))
    x = levels / 60.0
    for name in ("spread_us", "exponent", "exponent_spread", "read_spread"):
        assert_found(device, name, truth[name](x), x)
    np.testing.assert_allclose(device.fit.offset_us(x), truth["offset_us"](x), atol=4 * 1.5 / np.sqrt(2000))


def test_a_chip_of_the_fit_has_the_spreads_of_the_rows() -> None:
    levels = np.linspace(5.0, 60.0, 5)
    rows = made_up(levels, 400, TIMES, 3, **random_device(1))
    model = MeasuredNoise(fit_device(rows).fit.to_json())
    weights = torch.tensor(np.repeat(levels / 60.0, 4000))[None]
    with isolated_rng(0):
        programmed, state = model.apply_programming_noise(weights)
        chip = model.apply_drift_noise(programmed, state, 1e6)
    # The idle device of a pair, whose target is 0, takes the values of the lowest level; it is cut off at 0.
    idle = 60.0 * model.apply_noise(torch.cat([torch.ones(1), torch.zeros(40_000)])[None].double(), 1e6)[0, 1:]
    last = rows.conductance[rows.seconds == 1e6].reshape(5, -1)
    found = 60.0 * chip.reshape(5, -1).numpy()
    np.testing.assert_allclose(found.var(1) - float(idle.var()) / 2, last.var(1), rtol=0.15)
    np.testing.assert_allclose(found.mean(1), last.mean(1), rtol=0.02, atol=0.6)


@pytest.mark.slow
def test_standard_errors_are_those_of_repeated_experiments() -> None:
    levels = np.linspace(5.0, 60.0, 5)
    found = [fit_device(made_up(levels, 60, TIMES, 3, **random_device(2), seed=seed)) for seed in range(25)]
    for name in ("spread_us", "exponent", "exponent_spread", "read_spread"):
        spread = np.std([device.levels.values[name] for device in found], axis=0, ddof=1)
        told = np.mean([device.levels.errors[name] for device in found], axis=0)
        # Over five levels the ratio is known to 1 / sqrt(2 * 24 * 5) of itself, and four of that are 26 %.
        assert abs(np.mean(told / spread) - 1) < 0.3, name


def test_read_noise_is_taken_off_the_other_spreads() -> None:
    truth = random_device(3) | {"read_spread": lambda x: 0.03 + 0 * x}
    levels = np.linspace(20.0, 60.0, 5)
    repeated = made_up(levels, 1500, TIMES, 4, **truth)
    once = made_up(levels, 1500, TIMES, 1, **truth)
    x = levels / 60.0
    of_repeated, of_once = (estimate(*devices_of(rows, levels_of(rows))) for rows in (repeated, once))
    np.testing.assert_allclose(of_repeated.values["spread_us"], truth["spread_us"](x), rtol=0.12)
    assert (of_once.values["spread_us"] > 1.1 * truth["spread_us"](x)).all()
    assert np.isnan(of_once.values["read_spread"]).all()
    assert (of_once.values["exponent_spread"] > of_repeated.values["exponent_spread"]).all()


def test_devices_that_are_cut_off_at_0_are_counted_for() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0.0, 1.0, 20.0], 1500)
    rows = rows_of(target, np.zeros(1), np.maximum(target + rng.standard_normal(4500), 0.0)[:, None, None])
    device = fit_device(rows)
    assert_found(device, "spread_us", np.ones(3), np.array([0.0, 0.05, 1.0]))
    assert abs(device.fit.offset_us(np.array([0.0, 0.05, 1.0]))).max() < 0.08


def test_few_levels_are_a_table_and_wild_ones_too() -> None:
    rng = np.random.default_rng(0)
    for spreads in ([0.2, 2.0], [0.5, 3.0, 0.2, 2.0, 0.1, 4.0, 0.3]):
        target = np.repeat(np.arange(1.0, len(spreads) + 1) * 10.0, 300)
        unit = rng.standard_normal(len(target))
        device = fit_device(rows_of(target, np.zeros(1), (target + np.repeat(spreads, 300) * unit)[:, None, None]))
        curve = device.curves["spread_us"]
        assert curve.curve.form == "table" and curve.p is None and len(curve.errors) == len(spreads)
        np.testing.assert_allclose(curve.curve.values, spreads, rtol=0.15)
        assert device.curves["offset_us"].curve.form == "polynomial"


def plain_rows(levels: int, per_level: int) -> Measurements:
    target = np.repeat(np.linspace(1.0, 10.0, levels), per_level)
    return rows_of(target, np.zeros(1), (target + np.random.default_rng(0).standard_normal(len(target)))[:, None, None])


def test_targets_without_levels_can_be_grouped() -> None:
    rows = plain_rows(4000, 1)
    with pytest.raises(NabnError, match="at least 5 devices, got 1 at target 1 uS; --bins N groups"):
        fit_device(rows)
    device = fit_device(rows, bins=8)
    assert len(device.levels.devices) == 8 and device.levels.devices.min() >= 499
    assert_found(device, "spread_us", np.ones(8), device.levels.target_us / 10.0)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (plain_rows(1, 50), {}, "target must have at least two levels, got 1 uS in every row"),
        (plain_rows(3, 4), {}, "every level must have at least 5 devices, got 4 at target 1 uS"),
        (plain_rows(3, 20), {"bins": 1}, "bins must be an integer >= 2, got 1"),
        (plain_rows(3, 20), {"g_max_us": 11.0}, "g_max must be in uS, and measured, .* <= 10, got 11.0"),
        (plain_rows(3, 20), {"g_max_us": -1.0}, "g_max must be"),
    ],
)
def test_rows_that_say_too_little_are_refused(rows: Measurements, options: dict[str, float], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        fit_device(rows, **options)  # type: ignore[arg-type]


def test_a_device_whose_first_reading_is_missing_is_named() -> None:
    rows = made_up(np.array([10.0, 20.0]), 10, TIMES, 2, **random_device(0))
    keep = (rows.device != 12) | (rows.seconds > 1e3)
    late = Measurements(**{name: getattr(rows, name)[keep] for name in ("target", "conductance", "seconds", "device")})
    with pytest.raises(NabnError, match="most at 10 s, device 13 .* with target 20 uS at 10000 s"):
        fit_device(late)


def test_the_same_rows_give_the_same_fit() -> None:
    rows = made_up(np.array([10.0, 20.0, 30.0]), 20, TIMES, 2, **random_device(0))
    one, other = fit_device(rows), fit_device(rows)
    assert one.fit == other.fit and one.about() == other.about()
