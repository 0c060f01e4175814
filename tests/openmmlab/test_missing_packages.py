from __future__ import annotations

import pytest

pytest.importorskip("mmengine")

from aihwkit_nabn import cli
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import MissingDependencyError, NabnError
from aihwkit_nabn.openmmlab import missing_packages
from aihwkit_nabn.openmmlab.missing_packages import INSTALL, explained, missing_module

RETINANET = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
CONFIGS = {
    "import": "custom_imports = dict(imports=['PACKAGE.models'], allow_failed_imports=False)",
    "import, as text": "custom_imports = dict(imports='PACKAGE.models', allow_failed_imports=False)",
    "base": "_base_ = 'PACKAGE::_base_/models/resnet18.py'",
    "class": "from PACKAGE.models import ConvNeXt\nmodel = dict(type=ConvNeXt)",
    "base of the new kind": (
        "from mmengine.config import read_base\nwith read_base():\n    from PACKAGE.configs.resnet18 import *"
    ),
    "scope": f"_base_ = '{RETINANET}'\nmodel = dict(backbone=dict(_delete_=True, type='PACKAGE.ConvNeXt'))",
}


@pytest.fixture(autouse=True)
def without_mmpretrain(monkeypatch):
    there = missing_packages._is_there
    monkeypatch.setattr(missing_packages, "_is_there", lambda name: name != "mmpretrain" and there(name))


CASES = [
    *((command, kind, "mmpretrain") for command in ("inspect", "test", "sensitivity") for kind in CONFIGS),
    *(("compare", kind, "mmpretrain") for kind in ("import", "base", "scope")),
    *(("inspect", kind, "no_such_package") for kind in CONFIGS if kind != "base"),  # of packages mmengine knows
]


@pytest.mark.parametrize(("command", "kind", "package"), CASES)
def test_a_missing_package_is_named_with_what_to_do(command, kind, package, tmp_path, capsys) -> None:
    path = tmp_path / "config.py"
    path.write_text(CONFIGS[kind].replace("PACKAGE", package))
    (tmp_path / "w.pth").touch()
    arguments = [command, str(path)]
    if command != "inspect":
        arguments += [str(tmp_path / "w.pth"), "--noise", "pcm", "--out", str(tmp_path / "out")]
    assert run(cli.app, arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    advice = "run: pip install onedl-mmpretrain" if package == "mmpretrain" else "install it, or add the folder"
    assert error.startswith("nabn: error: ") and f"needs {package}, which is not installed; {advice}" in error
    assert "sys.path" not in error and "Traceback" not in error and "site-packages" not in error


@pytest.mark.parametrize(
    "name",
    [
        "mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
        "mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py",
        "mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py",
    ],
)
def test_upstreams_own_configs(name: str, capsys) -> None:
    assert run(cli.app, ["inspect", name]) == 2
    assert capsys.readouterr().err.rstrip().endswith("run: pip install onedl-mmpretrain model-index")


def test_a_package_that_is_there_but_broken_keeps_its_own_error(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "half.py").write_text("from os import no_such_name\n")
    (tmp_path / "config.py").write_text("custom_imports = dict(imports=['half'], allow_failed_imports=False)")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(cli.app, ["inspect", str(tmp_path / "config.py")]) == 2
    error = capsys.readouterr().err
    assert "cannot import name 'no_such_name'" in error and "sys.path" not in error and "not installed" not in error


def test_what_a_missing_package_needs_itself_and_modules_of_packages_that_are_there() -> None:
    for name, expected in (("no_such_package.models", "no_such_package"), ("torch.no_such", "torch.no_such")):
        with pytest.raises(MissingDependencyError, match=f"^x needs {expected}, which"), explained("x"):
            __import__(name)
    assert missing_module(KeyError("'torch.ConvNeXt is not in the mmdet::model registry.'")) is None


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("y"), NabnError("y"), RuntimeError("Please install more memory")):
        with pytest.raises(type(error)) as caught, explained("x"):
            raise error
        assert caught.value is error


def test_all_the_forks_are_known() -> None:
    assert {"modelindex", "mmdet", "mmseg", "mmcv", "mmengine", "mmpretrain"} <= set(INSTALL)
