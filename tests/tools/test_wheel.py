"""What is in the repository's package is in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None or not (ROOT / ".git").exists(), reason="needs uv and a checkout")
def test_the_wheel_holds_the_package(tmp_path: Path) -> None:
    built = subprocess.run(
        ["uv", "build", "--wheel", "--out-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    tracked = subprocess.run(["git", "ls-files", "aihwkit_nabn"], cwd=ROOT, capture_output=True, text=True, check=True)
    moved = "aihwkit_nabn/openmmlab/operators/aihwkit_nabn_mmcv.pth"
    assert set(tracked.stdout.split()) - {moved} <= names
    assert {"aihwkit_nabn_mmcv.pth", "_aihwkit_nabn_mmcv.py"} <= names


def test_what_the_wheel_holds_twice_is_a_link() -> None:
    assert (ROOT / "tools" / "_aihwkit_nabn_mmcv.py").is_symlink(), (
        "a copy would be left behind by changes of the finder"
    )
