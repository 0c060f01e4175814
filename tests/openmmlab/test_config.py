from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aihwkit_nabn.errors import MissingDependencyError, NabnError
from aihwkit_nabn.openmmlab import config as module
from aihwkit_nabn.openmmlab.config import (
    build_digital,
    find_config,
    installed_configs,
    load_config,
    parse_cfg_options,
    scope_of,
    without_downloads,
)

YOLOX = "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py"


def test_configs_of_the_wheels() -> None:
    assert "retinanet/retinanet_r50_fpn_1x_coco.py" in installed_configs("mmdet")
    assert "fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py" in installed_configs("mmseg")
    assert find_config(YOLOX).is_file()


def test_options_are_merged_as_upstream_does_it() -> None:
    options = parse_cfg_options(["model.bbox_head.num_classes=3", "a.b=[1,2]", "c=None", "d=x=y", "e=(1.5,true)"])
    assert options == {
        "model.bbox_head.num_classes": 3, "a.b": [1, 2], "c": None, "d": "x=y", "e": (1.5, True)
    }  # fmt: skip
    config = load_config(YOLOX, options)
    assert config.model.bbox_head.num_classes == 3 and config.a.b == [1, 2]
    assert parse_cfg_options([]) == {}


def test_a_file_that_inherits_from_both_wheels(tmp_path: Path) -> None:
    for scope, base in (("mmdet", YOLOX), ("mmseg", "mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py")):
        path = tmp_path / f"{scope}.py"
        path.write_text(f"_base_ = ['{base}']\n")
        assert scope_of(load_config(path)) == scope


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mmdet::retinanet/retinanet_r50_fpn_1x_coc.py", "did you mean 'retinanet/retinanet_r50_fpn_1x_coco.py'"),
        ("mmdet::retinanet_r50_fpn_1x_coco.py", "did you mean 'retinanet/retinanet_r50_fpn_1x_coco.py'"),
        ("retinanet_r50_fpn_1x_coco.py", "did you mean 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'"),
        ("mmdt::x.py", "did you mean 'mmdet'"),
        ("nowhere/x.py", "config 'nowhere/x.py' does not exist"),
    ],
)
def test_configs_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(NabnError, match=message.replace("(", r"\(")):
        load_config(name)


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("model = dict(")
    with pytest.raises(NabnError, match="cannot be read"):
        load_config(path)
    path.write_text("default_scope = 'mmpose'\n")
    with pytest.raises(NabnError, match="must be mmdet or mmseg, got 'mmpose'"):
        scope_of(load_config(path))
    path.write_text("default_scope = 'mmdet'\n")
    with pytest.raises(NabnError, match="defines no model"):
        build_digital(load_config(path))
    path.write_text("default_scope = 'mmdet'\nmodel = dict(type='NoSuchNet')\n")
    with pytest.raises(NabnError, match="'NoSuchNet' cannot be built"):
        build_digital(load_config(path))
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(NabnError, match="must be a Python file"):
        load_config(tmp_path / "b.txt")


@pytest.mark.parametrize("item", ["novalue", "=3", "a="])
def test_malformed_options(item: str) -> None:
    with pytest.raises(NabnError, match="must be KEY=VALUE"):
        parse_cfg_options([item])


def test_options_that_do_not_fit() -> None:
    with pytest.raises(NabnError, match="brackets"):
        parse_cfg_options(["a=[1,(2,3]"])
    with pytest.raises(NabnError, match="cfg-options do not fit"):
        load_config(YOLOX, {"train_dataloader.dataset.pipeline.99.type": "x"})


def test_nothing_is_downloaded() -> None:
    pretrained = {"type": "Pretrained", "checkpoint": "https://nowhere"}
    settings = {
        "pretrained": "torchvision://resnet50",
        "backbone": {"init_cfg": pretrained, "depth": 18},
        "head": {"init_cfg": [pretrained, {"type": "Normal", "std": 0.01}], "stages": ({"init_cfg": pretrained}, 1)},
    }
    assert without_downloads(settings) == {
        "pretrained": None,
        "backbone": {"depth": 18},
        "head": {"init_cfg": [{"type": "Normal", "std": 0.01}], "stages": ({}, 1)},
    }
    assert settings["pretrained"] is not None


def test_random_weights_are_seeded_and_a_checkpoint_is_read(detector) -> None:
    config = load_config(detector.path)
    torch.manual_seed(5)
    one, same, other = build_digital(config), build_digital(config, "random"), build_digital(config, seed=1)
    name = "bbox_head.retina_cls.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name]) and not one.training
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    stored = torch.load(detector.checkpoint, weights_only=True)["state_dict"]
    loaded = build_digital(config, detector.checkpoint)
    assert torch.equal(loaded.state_dict()[name], stored[name])
    with pytest.raises(NabnError, match="checkpoint 'none.pth' does not exist"):
        build_digital(config, "none.pth")


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "mmdet" else find(name))
    with pytest.raises(MissingDependencyError, match=r"mmdet is not installed; run: pip install 'aihwkit-nabn\[open"):
        load_config(YOLOX)
