from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aihwkit_nabn.data import demo_configs
from aihwkit_nabn.data.demo_configs import DEMO_CONFIGS, demo_checkpoint_path, demo_config_path
from aihwkit_nabn.errors import NabnError


@pytest.mark.parametrize("name", DEMO_CONFIGS)
def test_config_and_checkpoint_are_found(name: str) -> None:
    assert demo_config_path(name) == demo_config_path(f"{name}.py")
    assert demo_config_path(name).is_file()
    assert demo_checkpoint_path(name).stat().st_size < 3_000_000


@pytest.mark.parametrize("name", DEMO_CONFIGS)
def test_checkpoints_hold_weights_and_plain_data_only(name: str) -> None:
    content = torch.load(demo_checkpoint_path(name), weights_only=True)
    assert set(content) == {"state_dict", "meta"}
    assert all(
        tensor.device.type == "cpu" and torch.isfinite(tensor).all() for tensor in content["state_dict"].values()
    )
    assert {tensor.dtype for tensor in content["state_dict"].values()} == {torch.float32, torch.int64}
    assert content["meta"]["dataset_meta"]["classes"][-3:] == ("circle", "rectangle", "triangle")


def test_an_installed_package_has_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "_configs" / "demo"
    monkeypatch.setattr(demo_configs, "_FOLDERS", (tmp_path / "none", installed))
    with pytest.raises(NabnError, match="shapes_detector.py is in none of.*reinstall"):
        demo_config_path("shapes_detector")
    installed.mkdir(parents=True)
    (installed / "shapes_detector.py").touch()
    assert demo_config_path("shapes_detector") == installed / "shapes_detector.py"


def test_unknown_models_suggest() -> None:
    with pytest.raises(NabnError, match="unknown demo model 'shape_detector', did you mean 'shapes_detector'"):
        demo_config_path("shape_detector")
