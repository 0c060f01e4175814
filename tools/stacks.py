"""Tests the package on other versions of Python, torch, aihwkit, numpy and OpenMMLab: one environment and one row each.

    python tools/stacks.py --list
    python tools/stacks.py                      # all of them, about two hours on two cores
    python tools/stacks.py forks-313 forks-311  # these, anew

The stacks stand in `aihwkit_nabn/stacks.py`. Each result is written at once, so that an interrupted run keeps what it
had. It needs uv and the interpreters (found by uv or in ~/.pyenv/versions).
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

import typer
from rich.console import Console
from rich.table import Table
from stack_table import append, last_line, read_records, summary, write_table

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.files import write_text
from aihwkit_nabn.stacks import FLAVOURS, OPENMMLAB, STACKS, Stack

ROOT = Path(__file__).resolve().parents[1]
WORK = Path(tempfile.gettempdir(), "nabn-stacks")
TEST_TOOLS = ["pytest>=8.4", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100"]
TEST_TOOLS += ["sphinx>=8.1", "myst-parser>=4", "furo>=2024.8.6"]  # a test builds the site
# It compares the list of stacks with the results that are being made.
ABOUT_RESULTS = "tests/test_stacks.py::test_what_is_called_tested_was"
# mmcv's own list of requirements asks for an OpenCV that needs a desktop; its set-up needs pkg_resources.
UPSTREAM_BUILD = """
[[tool.uv.dependency-metadata]]
name = "mmcv"
version = "2.1.0"
requires-dist = ["addict", "mmengine>=0.3.0", "numpy", "packaging", "pillow", "pyyaml", "yapf"]

[tool.uv.extra-build-dependencies]
mmcv = ["setuptools<81"]
"""
LOOK = """
import importlib.metadata, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
from aihwkit_nabn.commands._probes import run_probes
print(json.dumps({"versions": found, "tile": vars(run_probes(["compiled_tile"])["compiled_tile"])}))
"""

app = typer.Typer(name="stacks.py", add_completion=False, pretty_exceptions_enable=False)


class StackError(Exception):
    """Why a stack could not be tested; it becomes the stack's row."""


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Stacks to test; default: all.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the stacks and exit.")] = False,
    tests: Annotated[
        str, typer.Option(help="core: not the slow tests; all; auto: all on the first stack, core on the others.")
    ] = "auto",
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Run only what failed in the recorded run again, in the existing environment."),
    ] = False,
    out: Annotated[Path, typer.Option(help="File of the table; the records go beside it, as .jsonl.")] = ROOT
    / "docs/stacks.md",
    work: Annotated[Path, typer.Option(help="Folder of the environments; kept for the next run.")] = WORK,
) -> None:
    """Make an environment for each stack, run the tests in it, and write a table of what passes."""
    console = Console()
    chosen = choose(names or [])
    if tests not in ("auto", "core", "all"):
        raise NabnError(f"--tests must be auto, core or all, got {tests!r}")
    if show:
        console.print(listing(chosen))
        return
    if shutil.which("uv") is None:
        raise NabnError("uv is not installed; run: pip install uv")
    write_table(out, read_records(out))  # says now if it cannot be written
    for stack in chosen:
        with console.status(stack.name) as status:
            say = status.update
            if failed:
                earlier = next((entry for entry in read_records(out) if entry["stack"] == stack.name), {})
                record = mend(stack, work / stack.name, earlier, say)
            else:
                record = examine(stack, work / stack.name, tests, say)
        records = append(out, record)
        write_table(out, records)
        console.print(f"{stack.name}: {summary(record)}", markup=False, soft_wrap=True)
    console.print(f"written: {out}", markup=False, soft_wrap=True)


def choose(names: list[str]) -> list[Stack]:
    """Return the named stacks, or all of them."""
    known = {stack.name: stack for stack in STACKS}
    for name in names:
        if name not in known:
            raise UnknownNameError("stack", name, list(known))
    return [known[name] for name in names] or list(STACKS)


def listing(stacks: list[Stack]) -> Table:
    """Return the stacks as a table for the terminal."""
    table = Table(title="stacks", title_justify="left")
    table.add_column("name", no_wrap=True)
    for heading in ("Python", "torch", "aihwkit", "numpy", "OpenMMLab", "known fault"):
        table.add_column(heading)
    for s in stacks:
        table.add_row(s.name, s.python, s.torch, s.aihwkit, s.numpy, s.openmmlab, s.fault)
    return table


def examine(stack: Stack, folder: Path, tests: str, say: Any) -> dict[str, Any]:
    """Build and test one stack in a folder; whatever goes wrong is in the record. `say` is told how far it is."""
    everything = tests == "all" or (tests == "auto" and stack.thorough)
    record: dict[str, Any] = {
        "stack": stack.name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "tests": "all" if everything else "without the slow ones",
    }
    start = time.monotonic()
    try:
        say(f"{stack.name}: installing (log: {folder / 'install.log'})")
        python = install(stack, folder)
        names = ["torch", "torchvision", "aihwkit", "numpy", *(n for group in OPENMMLAB.values() for n in group)]
        look = subprocess.run(
            [python, "-c", LOOK, *names], cwd=folder, capture_output=True, text=True, env=environment()
        )
        if look.returncode:
            raise StackError(f"the package cannot be imported: {last_line(look.stderr)}")
        found = json.loads(look.stdout.splitlines()[-1])
        record |= {"versions": found["versions"], "compiled_tile": found["tile"]}
        record |= run_tests(stack, python, folder, everything, say)
    except StackError as error:
        record["error"] = str(error)
    return record | {"minutes": round((time.monotonic() - start) / 60, 1)}


def mend(stack: Stack, folder: Path, record: dict[str, Any], say: Any) -> dict[str, Any]:
    """Run what failed in a recorded run once more, after it was mended, and return the record with what passes now.

    Raises:
        NabnError: there is no recorded run with failures, or more failed than were recorded.
    """
    names = record.get("failures", [])
    if not names or len(names) < record["failed"]:
        raise NabnError(f"{stack.name} has no recorded failures to run again; run it as a whole")
    python = folder / ".venv/bin/python"
    nodes = [node(name) for name in names]
    found = run_tests(stack, python, folder, True, say, nodes)
    if found["passed"] + found["failed"] + found["skipped"] != len(names):
        raise NabnError(f"{stack.name}: of the {len(names)} tests that failed, not all were found again")
    return record | {
        "passed": record["passed"] + found["passed"],
        "skipped": record["skipped"] + found["skipped"],
        "failed": found["failed"],
        "failures": found["failures"],
        "again": {"tests": names, "date": datetime.date.today().isoformat(), "commit": commit()},
    }


def node(name: str) -> str:
    """Return what pytest calls a test of a JUnit report: ``tests.a.test_b::test_c`` is in ``tests/a/test_b.py``."""
    module, _, test = name.partition("::")
    return f"{module.replace('.', '/')}.py{f'::{test}' if test else ''}"


def interpreter(version: str) -> Path:
    """Return an installed interpreter of a version such as ``"3.12"``.

    Raises:
        StackError: there is none.
    """
    command = ["uv", "python", "find", "--no-project", "--python-preference", "only-system", version]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode == 0:
        return Path(found.stdout.strip())
    own = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    if own:
        return own[-1]
    raise StackError(f"no Python {version} on this machine")


def project(stack: Stack) -> str:
    """Return the ``pyproject.toml`` of a stack's environment: this checkout with exactly these versions.

    The package's own bounds on torch and aihwkit are overridden: what lies outside them is tried too.
    """
    pins = {name: getattr(stack, name) for name in ("aihwkit", "torch", "torchvision")}
    exact = [f"{name}=={version}" for name, version in pins.items()]
    mm = [f"{name}=={version}" for name, version in FLAVOURS[stack.openmmlab].items()]
    extra = [*mm, "opencv-python-headless<5", "ftfy", "regex"] if mm else []
    needed = ["aihwkit-nabn", *exact, f"numpy=={stack.numpy}", *extra, *TEST_TOOLS]
    build = UPSTREAM_BUILD if stack.openmmlab == "upstream" else own_build() if mm else ""
    return f"""[project]
name = "nabn-stack"
version = "0"
requires-python = "=={stack.python}.*"
dependencies = {json.dumps(needed)}

[tool.uv]
package = false
python-preference = "only-system"
environments = ["sys_platform == 'linux'"]
override-dependencies = {json.dumps([*exact, "opencv-python; sys_platform == 'never'"])}

[tool.uv.sources]
aihwkit-nabn = {{ path = {json.dumps(str(ROOT))}, editable = true }}
{build}"""


def own_build() -> str:
    """Return how this project builds the forks: the tables of its ``pyproject.toml`` that say so."""
    tables = re.split(r"^(?=\[)", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    return "\n" + "".join(table for table in tables if table.startswith("[[tool.uv.dependency-metadata"))


def install(stack: Stack, folder: Path) -> Path:
    """Make or update the environment and return its interpreter.

    Raises:
        StackError: no such Python, or uv fails.
    """
    python = interpreter(stack.python)
    write_text(folder / "pyproject.toml", project(stack))
    (folder / "uv.lock").unlink(missing_ok=True)
    variables = environment() | {"UV_PROJECT_ENVIRONMENT": str(folder / ".venv")}
    with (folder / "install.log").open("w") as log:
        done = subprocess.run(["uv", "sync", "-p", str(python)], cwd=folder, stdout=log, stderr=log, env=variables)
    if done.returncode:
        raise StackError(f"cannot be installed: {last_line((folder / 'install.log').read_text())}")
    return folder / ".venv/bin/python"


def run_tests(
    stack: Stack, python: Path, folder: Path, everything: bool, say: Any, nodes: list[str] | None = None
) -> dict[str, Any]:
    """Run the suite, or some tests of it, and return its counts, why tests were skipped, and what failed.

    Raises:
        StackError: pytest did not get as far as a report.
    """
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", "-vv", "--tb=short", f"--junitxml={report}"]
    command += [] if everything else ["-m", "not slow"]
    command += [f"--deselect={ABOUT_RESULTS}", *(nodes or ())]
    begun = time.monotonic()
    with (
        (folder / "tests.log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment(python),
        ) as process,
    ):
        try:
            failed = 0
            for line in process.stdout or []:
                log.write(line)
                log.flush()
                if found := re.search(r"\[ *(\d+%)\]", line):
                    failed += " FAILED " in line or " ERROR " in line
                    minutes = (time.monotonic() - begun) / 60
                    say(f"{stack.name}: tests, {found[1]} after {minutes:.0f} min, {failed} failed (log: {log.name})")
        except BaseException:
            process.terminate()
            raise
    if not report.is_file():
        raise StackError(
            f"pytest ended with code {process.returncode}: {last_line((folder / 'tests.log').read_text())}"
        )
    return counts(report)


def counts(report: Path) -> dict[str, Any]:
    """Return numbers and names from a JUnit report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [found for case in cases if (found := case.find("skipped")) is not None]
    skips = Counter(found.get("message", "") for found in skipped)
    names = [f"{case.get('classname', '')}::{case.get('name', '')}".lstrip(":") for case in bad]
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": len(bad),
        "skipped": len(skipped),
        "failures": names[:50],
        "skips": dict(skips.most_common()),
    }


def environment(python: Path | None = None) -> dict[str, str]:
    """Return the variables of a child: none of the calling environment's packages, the stack's programs first."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    kept.setdefault("OMP_NUM_THREADS", "1")
    if python is not None:
        kept["PATH"] = f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept


def commit() -> str:
    """Return the checkout's commit; with a + where files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "aihwkit_nabn", "tests"], cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.returncode else "")


if __name__ == "__main__":
    raise SystemExit(run(app))
