"""Damaged versions of texts and JSON values, and what may come of reading them."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results import Record

ODD = [
    "",
    "nan",
    "inf",
    "-1",
    "1e999",
    "10" * 200,
    "\x00",
    "é",
    "[red]",
    "'; drop",
    "../..",
    "none",
    "true",
    "{}",
    "\n",
    "[" * 100_000,
]


def mutated_text(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(string.printable) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randint(1, 4) :]
        elif kind == 2:
            text = text[:at] + rng.choice(ODD) + text[at:]
        else:
            parts = text.replace(",", "=").split("=")
            text = text.replace(rng.choice(parts), rng.choice(ODD), 1)
    return text


def mutated_json(value: Any, rng: random.Random) -> Any:
    """Return the value with one place of it replaced, dropped or doubled."""
    places: list[tuple[Any, Any]] = []

    def walk(here: Any) -> None:
        for key, item in here.items() if isinstance(here, dict) else enumerate(here):
            places.append((here, key))
            if isinstance(item, (dict, list)):
                walk(item)

    value = json.loads(json.dumps(value))
    walk(value)
    holder, key = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        holder[key] = rng.choice([None, True, -1, 2**70, 1.5, "x", "", [], {}, [1], {"a": 1}, [[]], "\ud800", 1e400])
    elif kind == 1:
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(["extra", "", "record"])] = holder[key]
    else:
        holder.append(holder[key])
    return value


def survives(function: Callable[[], object]) -> bool:
    """Whether it returned; errors of ours are answers, any other exception fails the test."""
    try:
        function()
    except NabnError as error:
        assert str(error).strip()
        return False
    return True


def record(chip: int, method: str = "none") -> Record:
    return Record(
        scenario="s",
        group=None,
        strength=0.1,
        t_inference=0.0,
        method="uncalibrated" if method == "none" else method,
        method_name=method,
        chip_seed=chip,
        metrics={"accuracy": 50.0 + chip},
        seconds_calibration=0.0,
        seconds_evaluation=1.0,
        n_calibration_samples=0,
    )
