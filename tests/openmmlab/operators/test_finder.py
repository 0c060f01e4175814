"""How Python finds `mmcv._ext`: nobody has to import anything of ours, a compiled one wins, a broken one says so."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("mmengine")

from aihwkit_nabn.openmmlab.operators import finder

ROOT = Path(__file__).parents[3]
HERE = Path(finder.__file__).parent
SITE = Path(sysconfig.get_paths()["purelib"])
installed = pytest.mark.skipif(
    not (SITE / "aihwkit_nabn_mmcv.pth").is_file(), reason="the package is on the path, but not installed"
)


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run another Python from a folder that has nothing of ours in it."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *command], cwd="/", env=kept | variables, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def mmcv(tmp_path: Path) -> Path:
    """A package mmcv without any operators."""
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("")
    return package


FIND = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import runpy; runpy.run_path({str(HERE / "finder.py")!r})
import mmcv._ext
"""


@installed
def test_what_is_installed_is_this_file() -> None:
    assert (SITE / "_aihwkit_nabn_mmcv.py").read_text() == (HERE / "finder.py").read_text()


@installed
def test_python_starts_without_loading_anything_for_it() -> None:
    done = run("-c", "import sys; print(*sorted(name for name in sys.modules if 'nabn' in name or name == 'torch'))")
    assert done.stdout.split() == ["_aihwkit_nabn_mmcv"]


@installed
@pytest.mark.slow
@pytest.mark.parametrize("module", ["mmcv.ops", "mmdet.models", "mmseg.models"])
def test_upstream_packages_find_the_operators_by_themselves(module: str) -> None:
    pytest.importorskip(module.split(".")[0])
    done = run("-c", f"import {module}, mmcv._ext, sys; print(mmcv._ext.__file__, 'aihwkit_nabn.nn' in sys.modules)")
    assert done.returncode == 0, done.stderr
    file, *loaded = done.stdout.split()
    # A compiled one is a library of mmcv's own; nothing of ours but the operators is loaded either way.
    assert Path(file).parent in (HERE, Path(file).parents[1] / "mmcv") and loaded == ["False"]


@installed
@pytest.mark.slow
def test_worker_processes_find_them_too() -> None:
    pytest.importorskip("mmcv")
    program = (
        "import multiprocessing as m\n"
        "if __name__ == '__main__':\n"
        "    with m.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(eval, (\"__import__('mmcv.ops').ops.nms.__name__\",)))\n"
    )
    done = run("-c", program)
    assert done.returncode == 0 and done.stdout.split()[-1] == "nms", done.stderr


def test_the_folder_serves_where_there_is_nothing(mmcv: Path) -> None:
    done = run("-c", FIND + "print(mmcv._ext.__file__, mmcv._ext.nms.__module__)", PYTHONPATH=str(mmcv.parent))
    assert done.stdout.split() == [str(HERE / "__init__.py"), "mmcv._ext.suppression"], done.stderr


def test_a_compiled_one_wins(mmcv: Path) -> None:
    (mmcv / "_ext.py").write_text("nms = 'mmcv.own'")
    done = run("-c", FIND + "print(mmcv._ext.nms)", PYTHONPATH=str(mmcv.parent))
    assert done.stdout.split() == ["mmcv.own"], done.stderr


def test_a_broken_one_is_not_hidden(mmcv: Path) -> None:
    library = mmcv / f"_ext{sysconfig.get_config_var('EXT_SUFFIX')}"
    library.write_bytes(b"no library")
    done = run("-c", FIND, PYTHONPATH=str(mmcv.parent))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ImportError: ") and library.name in last
    assert "Compile them again" in last and "MMCV_WITH_OPS=1" in last and f"rm {mmcv}/_ext*.so" in last
    assert "UserWarning" in done.stderr, "mmdetection catches the error itself"
    again = FIND.replace(
        "import mmcv._ext", "for _ in range(3):\n    try: import mmcv._ext\n    except ImportError: pass"
    )
    assert run("-c", again, PYTHONPATH=str(mmcv.parent)).stderr.count("UserWarning") == 1


def test_old_finders_are_passed_over(mmcv: Path) -> None:
    old = "sys.meta_path.append(type('Old', (), {'find_module': staticmethod(lambda *names: None)}))"
    program = FIND.replace("import mmcv._ext", f"{old}; import mmcv._ext; print('found')")
    assert run("-c", program, PYTHONPATH=str(mmcv.parent)).stdout.split() == ["found"]


def test_nothing_changes_without_mmcv(tmp_path: Path) -> None:
    (tmp_path / "mmcv.py").write_text("raise ModuleNotFoundError(\"No module named 'mmcv'\", name='mmcv')")
    done = run("-c", FIND, PYTHONPATH=str(tmp_path))
    assert "No module named 'mmcv'" in done.stderr


def test_it_is_there_once_and_minds_its_own_name() -> None:
    before = list(sys.meta_path)
    finder.install()
    assert sys.meta_path == before
    names = [getattr(entry, "__name__", "") for entry in sys.meta_path]
    assert names.count(finder.MMCVOperatorsFinder.__name__) == 1
    assert finder.MMCVOperatorsFinder.find_spec("mmcv._extension") is None
    assert finder.MMCVOperatorsFinder.find_spec("json") is None
