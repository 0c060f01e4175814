from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aihwkit_nabn.data.digits import load_demo_model
from tests.tensors import equal


def test_a_short_training_learns_and_repeats(
    load_tool: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("train_digits")
    before = torch.get_rng_state()
    options = {"epochs": 4, "batch_size": 64, "learning_rate": 0.01, "max_shift": 2, "seed": 3}
    tool.main(out=tmp_path / "a.safetensors", **options)
    tool.main(out=tmp_path / "b.safetensors", **options)
    assert torch.equal(before, torch.get_rng_state())
    first, second = (load_demo_model(tmp_path / f"{name}.safetensors").state_dict() for name in "ab")
    assert equal(first, second)
    accuracy = float(capsys.readouterr().out.split("test ")[1].split("%")[0])
    assert accuracy > 60.0
