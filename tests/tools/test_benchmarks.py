"""The benchmarks run and print what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools" / "benchmarks"


@pytest.fixture
def analog_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in ("analog_cost", "measuring"):
        sys.modules.pop(name, None)
    import analog_cost as module

    return module


@pytest.mark.slow
def test_the_cost_of_a_layer(analog_cost: ModuleType, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        analog_cost.main(parts=["layer"], repeats=1, threads=1, peers=False, device="cpu", out=tmp_path / "table.txt")
    finally:
        torch.set_num_threads(threads)
    text = (tmp_path / "table.txt").read_text()
    assert "3 tiles (256 rows)" in text and "1 threads, float32" in text and "floor" in text
    with pytest.raises(ValueError, match="unknown part 'layers'; known: layer, networks, detectors"):
        analog_cost.main(parts=["layers"])


def test_memory_and_time_of_known_jobs(analog_cost: ModuleType) -> None:
    import measuring

    kept: list[torch.Tensor] = []
    measured = measuring.peak_memory(lambda: kept.append(torch.ones(2**24)))
    assert measured is None or 60 < measured < 70  # 64 MB
    calls: list[str] = []
    times = measuring.times_of({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2)
    assert calls == ["a", "b"] * 3 and set(times) == {"a", "b"}
