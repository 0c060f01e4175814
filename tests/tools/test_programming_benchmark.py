from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["512 x 512", "512 x 512, converters"])
def test_prints_both_sides_of_every_call(
    case: str,
    load_tool: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    tool = load_tool("benchmarks/programming")
    monkeypatch.setattr(tool, "CASES", {case: tool.CASES[case]})
    monkeypatch.setenv("COLUMNS", "150")
    tool.main(repeats=1, threads=1, model="squeezenet1_1")
    rows = [line.strip("│ \n").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[-6].strip() for row in rows] == list(tool.JOBS)
    for row in rows:
        theirs, ours, ratio, *megabytes = (float(cell) for cell in row[-5:])
        assert theirs > 0 and ours > 0 and abs(ratio - ours / theirs) < 0.1 * ratio + 0.1
        assert all(value >= 0 for value in megabytes)
