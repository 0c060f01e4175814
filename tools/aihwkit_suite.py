"""Runs aihwkit's own tests with and without `aihwkit_nabn.register()`, and compares what passes.

python tools/aihwkit_suite.py                        # the installed version's tests, from its source distribution
python tools/aihwkit_suite.py --tests aihwkit/tests  # those of a checkout
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import typer
from rich.console import Console

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError

ROOT = Path(__file__).resolve().parents[1]
HELPERS = Path(__file__).with_name("aihwkit_helpers")
PLUGIN = "import aihwkit_nabn\n\naihwkit_nabn.register()\n"
OUTCOMES = ("passed", "failed", "skipped")
# pip asks a source distribution for its metadata, which aihwkit's gives only where its build tool is.
PIP = ["run", "--no-project", "--isolated", "--with", "pip", "--with", "scikit-build", "--with", "setuptools"]
PIP += ["--with", "wheel", "python", "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:"]

app = typer.Typer(name="aihwkit_suite.py", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    tests: Annotated[
        Path | None, typer.Option(help="aihwkit's folder of tests; default: downloaded for the installed version.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many run tests at a time.")] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder for the logs; default: a temporary one.")] = None,
) -> None:
    """Run aihwkit's tests both ways and say which pass only one way; exit code 1 if there are any."""
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        logs = (out or Path(tempfile.mkdtemp(prefix="aihwkit-suite-"))).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        left_out = prepare(tests, work)
        for name, module in left_out.items():
            console.print(f"left out: {name} needs tests/helpers/{module}.py, which the source distribution lacks")
        results = {}
        for label, registered in (("without register()", False), ("with register()", True)):
            results[label] = run_tests(work, list(left_out), logs, registered=registered, processes=processes)
            counts = [f"{sum(o == outcome for o in results[label].values())} {outcome}" for outcome in OUTCOMES]
            console.print(f"aihwkit {version('aihwkit')}, {label}: {', '.join(counts)}")
    console.print(f"logs: {logs}", markup=False)
    different = differences(*results.values())
    for line in different:
        console.print(line, markup=False)
    if not different:
        console.print("The same tests pass both ways.")
    raise typer.Exit(1 if different else 0)


def prepare(tests: Path | None, work: Path) -> dict[str, str]:
    """Lay the tests (None: downloaded), what they import and the plugin in a folder of their own.

    Returns:
        The files that cannot be run, each with the helper module it lacks.

    Raises:
        NabnError: there are no tests there, or they cannot be downloaded.
    """
    if tests is not None and not any(tests.glob("test_*.py")):
        raise NabnError(f"--tests must be aihwkit's folder of tests, with files test_*.py, got {str(tests)!r}")
    folder = work / "suite" / "tests"
    shutil.copytree(download(work) if tests is None else tests, folder)
    if not (folder / "helpers").is_dir():
        shutil.copytree(HELPERS, folder / "helpers")
    (work / "plugin").mkdir()
    (work / "plugin" / "nabn_registered.py").write_text(PLUGIN)
    sources = [path.read_text() for path in folder.rglob("*.py")]
    if any("parameterized" in source for source in sources) and find_spec("parameterized") is None:
        target = str(work / "plugin")
        _uv(["pip", "install", "-q", "--no-deps", "--target", target, "parameterized"], "install parameterized")
    lacking = {}
    for path in sorted(folder.glob("test_*.py")):
        for module in re.findall(r"^from \.helpers\.(\w+) import", path.read_text(), re.MULTILINE):
            if not (folder / "helpers" / f"{module}.py").is_file():
                lacking[path.name] = module
    return lacking


def download(work: Path) -> Path:
    """Return the tests of the installed aihwkit's source distribution, unpacked.

    Raises:
        NabnError: it cannot be had.
    """
    needed = f"aihwkit=={version('aihwkit')}"
    _uv([*PIP, "--no-build-isolation", "--dest", str(work), needed], f"download {needed}")
    archive = next(work.glob("aihwkit-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz") / "tests"


def _uv(arguments: list[str], what: str) -> None:
    if shutil.which("uv") is None:
        raise NabnError(f"cannot {what}: uv is not installed; run: pip install uv")
    done = subprocess.run(["uv", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NabnError(f"cannot {what}:\n{done.stderr.strip()}")


def run_tests(work: Path, left_out: list[str], logs: Path, *, registered: bool, processes: int) -> dict[str, str]:
    """Run the suite once in the folder that `prepare` filled, `register()` called first in every process if asked.

    Returns:
        Each test's outcome, one of `OUTCOMES`.

    Raises:
        NabnError: pytest did not get as far as a report, or could not read a file.
    """
    name = "with" if registered else "without"
    report, log = work / f"{name}.xml", logs / f"{name}.log"
    command = [sys.executable, "-m", "pytest", "tests", "-q", f"-n{processes}", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *(f"--ignore=tests/{path}" for path in left_out)]
    command += ["-p", "nabn_registered"] if registered else []
    paths = os.pathsep.join([str(work / "plugin"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}
    with log.open("w") as stream:
        done = subprocess.run(command, cwd=work / "suite", stdout=stream, stderr=stream, env=environment)
    if done.returncode not in (0, 1) or not report.is_file():  # 1: tests failed
        raise NabnError(f"pytest ended with code {done.returncode}; see {log}")
    return outcomes(report)


def outcomes(report: Path) -> dict[str, str]:
    """Return the outcome of each test in a JUnit report.

    Raises:
        NabnError: a file could not be imported, so that its tests are not in the report.
    """
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        error = case.find("error")
        if error is not None and error.get("message") == "collection failure":
            raise NabnError(f"{case.get('name')} cannot be imported:\n{error.text}")
        bad = error is not None or case.find("failure") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def differences(without: dict[str, str], registered: dict[str, str]) -> list[str]:
    """Return a line for each test that passes one way only."""
    return [
        f"{name}: {without.get(name, 'not run')} without register(), {registered.get(name, 'not run')} with it"
        for name in sorted({*without, *registered})
        if (without.get(name) == "passed") != (registered.get(name) == "passed")
    ]


if __name__ == "__main__":
    raise SystemExit(run(app))
