"""The script that tests the stacks: what it asks uv for, what it reads from a report, what stays of earlier runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.stacks import STACKS

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

TOOLS = Path(__file__).parents[2] / "tools"
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one"/>
<testcase classname="tests.a" name="two"><failure message="no">x</failure></testcase>
<testcase classname="tests.b" name="three"><skipped message="no GPU">x</skipped></testcase>
<testcase classname="tests.b" name="four"><skipped message="no GPU">x</skipped></testcase>
<testcase classname="" name="tests.c"><error message="import">x</error></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def script(load_tool: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    return load_tool("stacks")


@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
def test_each_stack_is_asked_for_exactly(script, stack) -> None:
    project = tomllib.loads(script.project(stack))
    wanted = project["project"]["dependencies"]
    assert {f"torch=={stack.torch}", f"aihwkit=={stack.aihwkit}", f"numpy=={stack.numpy}"} <= set(wanted)
    assert f"torch=={stack.torch}" in project["tool"]["uv"]["override-dependencies"], (
        "outside the package's bounds, too"
    )
    described = {entry["name"] for entry in project["tool"]["uv"].get("dependency-metadata", ())}
    assert "torch" not in str(project["tool"]["uv"].get("extra-build-dependencies")), "mmcv is not compiled"
    assert (
        described
        == {
            "none": set(),
            "forks": {"onedl-mmcv", "onedl-mmdetection"},
            "upstream": {"mmcv"},
        }[stack.openmmlab]
    )


def test_a_report_is_counted(script, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert script.counts(tmp_path / "report.xml") == {
        "passed": 1,
        "failed": 2,
        "skipped": 2,
        "failures": ["tests.a::two", "tests.c"],
        "skips": {"no GPU": 2},
    }


def test_rows_are_kept_replaced_and_written_between_the_marks(script, tmp_path: Path) -> None:
    out = tmp_path / "stacks.md"
    out.write_text(f"# Stacks\n\nBefore.\n\n{script.write_table.__globals__['BEGIN']}\nold\n<!-- end -->\n\nAfter.\n")
    row = {"stack": "forks-313", "tests": "all", "date": "2026-01-01", "commit": "abc"}
    script.append(out, row | {"error": "no Python 3.13 on this machine"})
    script.append(out, row | {"stack": "A-forks", "passed": 9, "failed": 1, "skipped": 0, "failures": ["t::x"]})
    with out.with_suffix(".jsonl").open("a") as file:
        file.write('{"stack": "forks-3')  # killed while it wrote
    records = script.append(out, row | {"passed": 7, "failed": 0, "skipped": 2, "versions": {"numpy": "2.9.9"}})
    assert [record["stack"] for record in records] == ["A-forks", "forks-313"] and "error" not in records[1]
    script.write_table(out, records)
    text = out.read_text()
    assert text.startswith("# Stacks\n\nBefore.") and text.endswith("After.\n") and "old" not in text
    assert "| forks-313 | 3.13 | 2.15.0 | 1.2.0 | 2.9.9 | forks | 7 | 0 | 2 |" in text
    assert "- A-forks: 9 passed, 1 failed, 0 skipped: t::x" in text
    script.write_table(out, script.read_records(out))
    assert out.read_text() == text
    out.write_text("# Stacks\n")
    with pytest.raises(NabnError, match="for the table to stand between"):
        script.write_table(out, records)


def test_a_stack_that_cannot_be_made_has_its_row(script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(script, "interpreter", lambda version: _raise(script.StackError(f"no Python {version}")))
    record = script.examine(STACKS[0], tmp_path, "auto", lambda text: None)
    assert record["error"] == "no Python 3.11" and record["tests"] == "all" and record["stack"] == "A-forks"


def _raise(error: Exception) -> None:
    raise error


def test_unknown_names(script) -> None:
    with pytest.raises(NabnError, match="forks-313"):
        script.choose(["forks-311", "forks-331"])
    assert [stack.name for stack in script.choose(["forks-311"])] == ["forks-311"]


def test_only_what_failed_is_run_again(script, tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []

    def run_tests(stack, python, folder, everything, say, nodes):
        asked.extend(nodes)
        return {"passed": 1, "failed": 0, "skipped": 0, "failures": [], "skips": {}}

    monkeypatch.setattr(script, "run_tests", run_tests)
    record = {"stack": "A-forks", "tests": "all", "date": "2026-01-01", "commit": "abc"}
    record |= {"passed": 9, "failed": 1, "skipped": 2, "failures": ["tests.a.test_b::test_c[x.y]"]}
    mended = script.mend(STACKS[0], tmp_path, record, print)
    assert asked == ["tests/a/test_b.py::test_c[x.y]"]
    assert (mended["passed"], mended["failed"], mended["skipped"], mended["failures"]) == (10, 0, 2, [])
    out = tmp_path / "stacks.md"
    script.write_table(out, script.append(out, mended))
    assert "1 of the tests of A-forks failed at abc and were run again" in out.read_text()
    with pytest.raises(NabnError, match="no recorded failures"):
        script.mend(STACKS[0], tmp_path, mended, print)
