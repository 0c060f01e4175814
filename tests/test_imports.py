"""Imports run downwards: the contract in ``pyproject.toml``, which ``.ci/run`` checks too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parents[1] / "pyproject.toml"


def test_the_house_is_as_the_contract_says(capsys: pytest.CaptureFixture[str]) -> None:
    linter = pytest.importorskip("importlinter.cli", reason="import-linter needs Python 3.11")
    code = linter.lint_imports(str(CONTRACT), no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out
    assert "ignore_imports" not in CONTRACT.read_text(), "a contract with exceptions is none"


@pytest.mark.parametrize(
    ("module", "unwanted"), [("results", {"torch", "aihwkit", "matplotlib"}), ("reporting", {"torch", "aihwkit"})]
)
def test_what_lives_on_results_alone_loads_no_torch(module: str, unwanted: set[str]) -> None:
    code = f"import sys, aihwkit_nabn.{module}; sys.exit(bool({unwanted!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
