from __future__ import annotations

import math

import numpy as np
import pytest

from aihwkit_nabn.errors import (
    CalibrationError,
    ConversionError,
    MissingDependencyError,
    NabnError,
    NotProgrammedError,
    UnknownNameError,
    check_count,
    check_number,
    missing_extra,
    name_with_options,
    suggestion,
)


def test_all_are_value_errors():
    for error in (UnknownNameError, NotProgrammedError, ConversionError, CalibrationError, MissingDependencyError):
        assert issubclass(error, NabnError) and issubclass(error, ValueError)
    assert issubclass(MissingDependencyError, ImportError) and issubclass(UnknownNameError, KeyError)


def test_unknown_name_reads_as_a_sentence():
    error = UnknownNameError("noise model", "gausian", ["pcm", "gaussian"])
    assert str(error) == "unknown noise model 'gausian', did you mean 'gaussian'?; known: gaussian, pcm"
    assert error.known == ["gaussian", "pcm"]
    assert str(UnknownNameError("noise model", 7, ["pcm"])) == "unknown noise model 7; known: pcm"


def test_unknown_name_with_options_or_with_a_hint():
    known = ["pcm", "gaussian"]
    error = UnknownNameError("noise model", "pcm:g_max_us=20", known)
    assert str(error) == (
        "unknown noise model 'pcm:g_max_us=20': options do not go with the name 'pcm'; known: gaussian, pcm"
    )
    assert str(UnknownNameError("noise model", "none", known, "; leave it out")) == (
        "unknown noise model 'none'; leave it out"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:b=1,c=2", ("a", ["b=1", "c=2"])),
        (" a ( b=1 )", ("a", ["b=1"])),
        ("a:", ("a", [""])),
        ("a", ("", [])),
        ("a-b:c", ("", [])),
        (3, ("", [])),
    ],
)
def test_names_with_options(text, found):
    assert name_with_options(text) == found


def test_suggestion_ignores_case_and_gives_up_on_the_far_off():
    assert suggestion("paired ", ["Paired", "ema"]) == ", did you mean 'Paired'?"
    assert suggestion("zzz", ["paired", "ema"]) == ""
    assert suggestion("x", []) == ""


def test_missing_extra_holds_the_install_line():
    error = missing_extra("mmengine", "openmmlab")
    assert str(error) == "mmengine is not installed; run: pip install 'aihwkit-nabn[openmmlab]'"
    assert isinstance(error, MissingDependencyError)


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.0, 0.5, np.float64(0.5), np.float32(0.5), np.int64(1)])
def test_numbers_in_range_come_back_as_floats(value):
    number = check_number("share", value, minimum=0.0, maximum=1.0)
    assert type(number) is float and number == value


@pytest.mark.parametrize("value", [-1e-9, 1.1, math.nan, math.inf, -math.inf, True, None, "0.5", 1j, [0.5]])
def test_numbers_out_of_range(value):
    with pytest.raises(NabnError, match=r"^share must be a finite number >= 0 and <= 1, got ") as caught:
        check_number("share", value, minimum=0.0, maximum=1.0)
    assert str(caught.value).endswith(repr(value))


def test_numbers_say_what_they_are():
    with pytest.raises(NabnError, match="^x must be the share of all, between 0 and 1, got 5$"):
        check_number("x", 5, minimum=0.0, maximum=1.0, meaning="the share of all")
    with pytest.raises(NabnError, match="^x must be the share of all, a finite number > 0 and <= 1, got 5$"):
        check_number("x", 5, exclusive_minimum=0.0, maximum=1.0, meaning="the share of all")


def test_exclusive_minimum():
    assert check_number("x", 1e-30, exclusive_minimum=0.0) == 1e-30
    with pytest.raises(NabnError, match="x must be a finite number > 0, got 0"):
        check_number("x", 0, exclusive_minimum=0.0)
    assert check_number("x", -1e300) == -1e300


@pytest.mark.parametrize("value", [1, 10**9, np.int64(3)])
def test_counts(value):
    count = check_count("n", value, minimum=1)
    assert type(count) is int and count == value


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "3", np.float64(2), math.nan])
def test_counts_that_are_none(value):
    with pytest.raises(NabnError, match="n must be an integer >= 1, got "):
        check_count("n", value, minimum=1)
