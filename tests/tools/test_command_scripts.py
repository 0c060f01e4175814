from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from aihwkit_nabn.commands._run import run


def test_inspect_model(load_tool: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(load_tool("inspect_model").app, ["torchvision:squeezenet1_1"]) == 0
    assert "matrix weights on" in capsys.readouterr().out


def test_analog_test(load_tool: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(load_tool("analog_test").app, ["torchvision:resnet18", "random", "--noise", "pmc", "--data", "x"]) == 2
    assert "analog_test.py: error: unknown preset 'pmc', did you mean 'pcm'?" in capsys.readouterr().err
