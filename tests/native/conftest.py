"""With compiled code and without it, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[Any]]:
    """Return a function that calls another one with compiled code, then without it, and returns both results."""

    def call(function: Callable[[], Any]) -> list[Any]:
        results = []
        for way in ("1", "0"):
            monkeypatch.setenv("NABN_NATIVE", way)
            results.append(function())
        return results

    return call


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Return what sets torch's number of threads, for this test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def threads(request: pytest.FixtureRequest, set_threads: Callable[[int], None]) -> None:
    """Run the test on as many threads as it is parametrized with."""
    set_threads(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [1, 3], indirect=True)
