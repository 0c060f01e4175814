from __future__ import annotations

import math

import numpy as np
import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.times import _WORDS, UNITS, format_time, parse_time

YEAR = 365.25 * 86_400.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (0, 0.0),
        (3, 3.0),
        (2.5, 2.5),
        (np.float32(2.5), 2.5),
        (np.int64(7), 7.0),
        ("20", 20.0),
        ("1e3", 1000.0),
        ("1e-3s", 1e-3),
        ("5min", 300.0),
        ("1h", 3600.0),
        ("1d", 86_400.0),
        (" 1.5 D ", 129_600.0),
        ("2w", 1_209_600.0),
        ("1mo", YEAR / 12),
        ("10y", 10 * YEAR),
        (".5y", YEAR / 2),
    ],
)
def test_parse(text, seconds):
    parsed = parse_time(text)
    assert type(parsed) is float and parsed == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "time",
    [
        -1,
        -1e-9,
        math.nan,
        math.inf,
        True,
        None,
        "",
        " ",
        "d",
        "1 day",
        "-1d",
        "1.2.3s",
        "nan",
        "inf",
        "1e999",
        [1],
        "1d2h",
    ],
)
def test_unreadable_times(time):
    with pytest.raises(
        NabnError, match=r"time must be seconds >= 0 or a number with one of s, min, h, d, w, mo, y, got "
    ):
        parse_time(time)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("1 day", "'1d'"),
        ("1day", "'1d'"),
        ("2 weeks", "'2w'"),
        ("1.5 Hours", "'1.5h'"),
        ("3 hrs", "'3h'"),
        ("10 years", "'10y'"),
        ("10yr", "'10y'"),
        ("20 sec", "'20s'"),
        ("5 mins", "'5min'"),
        ("6 months", "'6mo'"),
        ("6 mth", "'6mo'"),
        ("3 dyas", "'3d'"),
        ("1e3 secnods", "'1e3s'"),
        ("1m", "'1min' or '1mo'"),
    ],
)
def test_the_nearest_time_is_suggested(text, nearest):
    with pytest.raises(NabnError) as caught:
        parse_time(text)
    assert str(caught.value) == (
        f"time must be seconds >= 0 or a number with one of s, min, h, d, w, mo, y, got {text!r}, "
        f"did you mean {nearest}?"
    )


@pytest.mark.parametrize(
    "text", ["5 ms", "1 us", "3 parsecs", "day", "-1 day", "1.2.3s", "1d2h", "1e999", "1e999 days"]
)
def test_what_is_no_time_gets_no_suggestion_that_fails(text):
    with pytest.raises(NabnError) as caught:
        parse_time(text)
    assert "did you mean" not in str(caught.value)


def test_every_unit_written_out_leads_to_it():
    for unit, word in _WORDS.items():
        for text in (word, f"{word}s", word.upper(), word[: len(word) - 1]):
            if text.lower() not in UNITS:
                with pytest.raises(NabnError, match=f"did you mean '7{unit}'"):
                    parse_time(f"7 {text}")
    assert _WORDS.keys() == UNITS.keys()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.25, "0.25s"),
        (20.0, "20s"),
        (90.0, "1.5min"),
        (3600.0, "1h"),
        (86_400.0, "1d"),
        (7 * 86_400.0, "7d"),
        (YEAR / 12, "1mo"),
        (YEAR, "1y"),
        (10 * YEAR, "10y"),
    ],
)
def test_format(seconds, text):
    assert format_time(seconds) == text
    assert parse_time(text) == pytest.approx(seconds, rel=1e-12)
