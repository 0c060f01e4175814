"""Code of the user's own: it imports what lies beside it, and leaves everybody else's imports alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.extension import UserObject, import_extension, is_module


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "line", ["from beside import VALUE", "from .beside import VALUE", "import beside; VALUE = beside.VALUE"]
)
def test_a_file_imports_its_neighbours(tmp_path: Path, line: str) -> None:
    _write(tmp_path, model=f"{line}\ndef build():\n    return VALUE\n", beside="VALUE = 7\n")
    path = list(sys.path)
    assert UserObject(f"{tmp_path}/model.py:build")() == 7
    assert sys.path == path


def test_two_folders_have_neighbours_of_one_name(tmp_path: Path) -> None:
    late = "def build():\n    from beside import VALUE\n    import beside\n    return VALUE, beside.VALUE\n"
    for number in (1, 2):
        _write(tmp_path / str(number), model=late, beside=f"VALUE = {number}\n")
    one, two = (UserObject(f"{tmp_path}/{number}/model.py:build") for number in (1, 2))
    assert [one(), two(), one()] == [(1, 1), (2, 2), (1, 1)]


def test_a_file_of_a_package_is_imported_as_its_module(tmp_path: Path) -> None:
    text = "from ..other import VALUE\nfrom user_package_x.other import VALUE as AGAIN\n"
    _write(
        tmp_path / "user_package_x",
        __init__="",
        other="VALUE = object()\n",
        sub__in____init__="",
        sub__in__model=f"{text}def build():\n    return VALUE is AGAIN\n",
    )
    assert UserObject(f"{tmp_path}/user_package_x/sub/model.py:build")() is True


def test_a_module_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, here_only_x="def build():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NabnError, match="no module 'here_only_y' is installed .*did you mean 'here_only_x'"):
        import_extension("here_only_y")
    assert is_module("here_only_x") and not is_module("here_only_y") and not is_module("no identifier")
    assert UserObject("here_only_x:build")() == 3
    assert UserObject("os.path:basename").found is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle.py:build", r"cannot import .*modle.py: no such file, did you mean 'model.py'"),
        ("model.py:biuld", r"model.py has no 'biuld', did you mean 'build'"),
        ("model.py:fails", r"model.py:fails failed: ZeroDivisionError: division by zero \(.*model.py, line 4\)"),
        ("model.py:inside", r"inside failed: KeyError: 'x' \(.*beside.py, line 3\)"),
        ("broken.py:build", r"cannot import .*broken.py: ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("syntax.py:build", r"cannot import .*syntax.py: SyntaxError: .*\(syntax.py, line 2\)"),
        ("leaves.py:build", r"cannot import .*leaves.py: SystemExit: 3 \(.*leaves.py, line 2\)"),
    ],
)
def test_errors_name_the_users_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    _write(
        tmp_path,
        model="import beside\n\ndef fails():\n    return 1 / 0\n\ninside = beside.inside\nbuild = None\n",
        beside="import torch\ndef inside():\n    return {}['x']\n",
        broken="\n1 / 0\n",
        syntax="\nx = = 1\n",
        leaves="import sys\nsys.exit(3)\n",
    )
    with pytest.raises(NabnError, match=message):
        UserObject(f"{tmp_path}/{text}")()


def test_errors_below_the_users_call_name_the_users_line(tmp_path: Path) -> None:
    _write(tmp_path, model="import torch\ndef build():\n    return torch.nn.Linear(2, 3)(torch.ones(5))\n")
    with pytest.raises(NabnError, match=r"RuntimeError: .*model.py, line 3\)"):
        UserObject(f"{tmp_path}/model.py:build")()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("aihwkit_nabn.workload", "no module 'aihwkit_nabn.workload' .*did you mean 'workloads'"),
        ("no_such_package.sub", "no module 'no_such_package'"),
        ("", "cannot import "),
    ],
)
def test_modules_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(NabnError, match=message):
        import_extension(source)


def test_the_checksum_knows_the_neighbours_that_are_used(tmp_path: Path) -> None:
    files = {"model": "from beside import build\n", "beside": "def build():\n    return 1\n", "unused": "x = 1\n"}

    def digest(folder: str, **changed: str) -> str:
        _write(tmp_path / folder, **files | changed)
        import_extension(f"{tmp_path}/{folder}/unused.py")
        return UserObject(f"{tmp_path}/{folder}/model.py:build").digest()

    assert digest("a") == digest("b") == digest("c", unused="x = 2\n")
    assert (
        len({digest("a"), digest("d", beside=files["beside"] + "# other\n"), digest("e", model=files["model"] + "#")})
        == 3
    )
