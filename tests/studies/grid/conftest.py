from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

Content = dict[str, Any]

SMALL: Content = {
    "version": 1,
    "name": "small",
    "chips": 2,
    "models": ["digits"],
    "noise": [{"preset": "gaussian", "strength": [0.1]}],
    "methods": ["none", "population", "paired"],
    "samples": [2, 8],
    "test_images": 40,
}

STREAM: Content = {
    "version": 1,
    "name": "small_stream",
    "chips": 1,
    "models": ["digits"],
    "noise": ["variational:sigma=0.1,schedule=ramp,period_samples=60"],
    "samples": [16],
    "test_images": 40,
    "stream": {
        "images": 60,
        "window": 20,
        "batch": 10,
        "tracking": ["none", "online", {"method": "paired", "every": 20}],
    },
}


@pytest.fixture
def small() -> Callable[..., Content]:
    """Return a function that gives a small sweep, with top-level keys changed or, with None, taken out."""

    def content(base: Content = SMALL, /, **changed: Any) -> Content:
        merged = {**copy.deepcopy(base), **changed}
        return {key: value for key, value in merged.items() if value is not None}

    return content


@pytest.fixture
def small_stream(small: Callable[..., Content]) -> Callable[..., Content]:
    """Return the same with a stream."""
    return lambda **changed: small(STREAM, **changed)
