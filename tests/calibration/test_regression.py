"""Regression from moments against numpy on the samples themselves, and what keeps it from making things up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aihwkit_nabn.calibration.corrections import Regressed
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.regression import Correction, HalvedMoments, solve, solve_checked


def samples(n, k=6, c=5, seed=0, noise=0.5, error=0.3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(k, n, generator=generator) + 1.0
    digital = torch.randn(c, k, generator=generator) @ inputs
    left_over = noise * torch.randn(c, n, generator=generator)
    return inputs, digital - error * torch.randn(c, k, generator=generator) @ inputs - left_over, digital


def moments_of(inputs, analog, digital, groups=1, cuts=(7, 3, 11)):
    found = HalvedMoments(groups)
    is_second = torch.arange(inputs.shape[1]) % 2 == 1
    start = 0
    for n in (*cuts, inputs.shape[1] - sum(cuts)):
        part = slice(start, start + n)
        other = HalvedMoments(groups)
        other.take_in(inputs[:, part], analog[:, part], digital[:, part], is_second[part])
        other.note_inputs(inputs[:, part].T, 1, len(digital))
        found.merge(other)
        start += n
    return found


def matrix(correction):
    mixing, directions = correction.factors()
    return mixing @ directions


@pytest.mark.parametrize("groups", [1, 5])
def test_what_a_correction_does_is_read_from_moments(groups):
    inputs, analog, digital = samples(60, k=6 if groups == 1 else 5)
    found = moments_of(inputs, analog, digital, groups)
    if groups == 1:
        correction = Correction(directions=torch.randn(2, 6), mixing=torch.randn(5, 2))
        corrected = analog + correction.mixing @ correction.directions @ inputs
    else:
        correction = Correction(input_gain=torch.randn(5))
        corrected = analog + correction.input_gain.unsqueeze(1) * inputs
    after = found.corrected(correction, Moments.of(analog.T, 1))
    np.testing.assert_allclose(after.mean, corrected.double().mean(1), rtol=1e-5)
    np.testing.assert_allclose(after.var, corrected.double().var(1, correction=0), rtol=1e-5)
    errors = [(digital - y).double() for y in (analog, corrected)]
    before, left = ((e - e.mean(1, keepdim=True)).square().sum() for e in errors)
    assert found.whole().left_over(correction) == pytest.approx(float(left - before), rel=1e-5)
    both = [(y - y.mean(1, keepdim=True)).double() for y in (analog, digital)]
    expected = float((both[0] * both[1]).sum() / (both[0].norm() * both[1].norm()))
    assert found.whole().correlation == pytest.approx(expected, rel=1e-6)


def test_nothing_is_made_up_of_few_samples_with_many_inputs():
    """What 40 samples say about 60 inputs beyond the layer's own error is chance, which the other half tells."""
    inputs, analog, digital = samples(40, k=60, noise=5.0)
    own = Correction(directions=torch.zeros(2, 60), mixing=torch.zeros(5, 2))
    correction = solve_checked(moments_of(inputs, analog, digital), 2, 0.01, own)
    fresh, fresh_analog, fresh_digital = samples(2000, k=60, noise=5.0, seed=0)
    unchecked = solve(moments_of(inputs, analog, digital).whole(), 0.01).cut(2)

    def error(found):
        left = fresh_digital - fresh_analog - (matrix(found) @ fresh.double())
        return float((left - left.mean(1, keepdim=True)).square().mean())

    assert error(correction) <= error(unchecked) and error(correction) < 1.02 * error(own)


def test_enough_samples_are_believed():
    inputs, analog, digital = samples(4000)
    zero = Correction(directions=torch.zeros(5, 6), mixing=torch.zeros(5, 5))
    correction = solve_checked(moments_of(inputs, analog, digital), 5, 1e-6, zero)
    expected = np.linalg.lstsq(
        (inputs - inputs.mean(1, keepdim=True)).T.numpy(), (digital - analog).T.numpy(), rcond=None
    )[0].T
    np.testing.assert_allclose(matrix(correction), expected, atol=1e-3)


def test_what_looked_at_other_things_is_not_compared():
    """A detector's chip that finds other regions: regressing one on the other would take the signal out."""
    inputs, analog, digital = samples(400)
    own = Correction(directions=torch.ones(1, 6), mixing=torch.ones(5, 1))
    regressed = Regressed(rank=1, own=own, ridge=0.01, groups=1)
    assert regressed.solve(moments_of(inputs, analog, digital)) is not own
    shuffled = digital[:, torch.randperm(400)]
    assert regressed.solve(moments_of(inputs, analog, shuffled)) is own
    assert regressed.solve(HalvedMoments(1)) is own


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("size", [1e-18, 1.0, 1e18])
def test_moments_are_those_of_double_precision_however_large_the_values(groups, size):
    parts = [part * size for part in samples(80, k=6 if groups == 1 else 5)]
    found = moments_of(*parts, groups).whole()
    inputs, analog, digital = (part.double() - part.double().mean(1, keepdim=True) for part in parts)
    if groups == 1:
        expected = inputs @ inputs.T, analog @ inputs.T, digital @ inputs.T
    else:
        expected = tuple((part * inputs).sum(1) for part in (inputs, analog, digital))
    expected += analog.square().sum(1), digital.square().sum(1), (analog * digital).sum(1)
    for got, wanted in zip(found.scatter, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-12 * float(wanted.abs().max()))
    assert found.is_finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_moments_tell_of_values_that_are_not_finite(bad, which):
    parts = samples(40)
    parts[which][1, 3] = bad
    assert not moments_of(*parts).whole().is_finite
