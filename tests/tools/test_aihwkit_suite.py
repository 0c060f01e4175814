from __future__ import annotations

import pytest
from typer.testing import CliRunner

from aihwkit_nabn.errors import NabnError

TESTS = {
    "test_map.py": """
import pytest
from aihwkit.nn.conversion import _DEFAULT_CONVERSION_MAP as conversion
from torch import nn

def test_both():
    assert nn.Linear in conversion

def test_only_without():
    assert nn.BatchNorm2d not in conversion

def test_only_with():
    assert nn.BatchNorm2d in conversion

def test_neither():
    pytest.skip()
""",
    "test_far.py": "from .helpers.experiments import Far\n",
    "helpers/__init__.py": "",
    "__init__.py": "",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in TESTS.items():
        path = tmp_path / "their tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "their tests"


@pytest.fixture
def call(load_tool, tmp_path):
    app = load_tool("aihwkit_suite").app
    return lambda tests: CliRunner().invoke(app, ["--tests", str(tests), "--processes", "1", "--out", str(tmp_path)])


def test_says_which_tests_pass_one_way_only(folder, call):
    result = call(folder)
    assert result.exit_code == 1, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("left out: test_far.py needs tests/helpers/experiments.py")
    assert lines[1].endswith("without register(): 2 passed, 1 failed, 1 skipped")
    assert lines[2].endswith("with register(): 2 passed, 1 failed, 1 skipped")
    assert lines[4:] == [
        "tests.test_map::test_only_with: failed without register(), passed with it",
        "tests.test_map::test_only_without: passed without register(), failed with it",
    ]


def test_the_same_passes_end_well(folder, call, tmp_path):
    (folder / "test_map.py").write_text("def test_fails():\n    assert False\n\ndef test_passes():\n    pass\n")
    result = call(folder)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "The same tests pass both ways."
    assert (tmp_path / "with.log").is_file() and (tmp_path / "without.log").is_file()


def test_a_folder_without_tests_and_a_file_that_cannot_be_read(folder, call, tmp_path):
    result = call(tmp_path / "nothing")
    assert isinstance(result.exception, NabnError) and "--tests must be" in str(result.exception)
    (folder / "test_map.py").write_text("import nothing_of_this_name\n")
    result = call(folder)
    assert isinstance(result.exception, NabnError) and "tests.test_map cannot be imported" in str(result.exception)
