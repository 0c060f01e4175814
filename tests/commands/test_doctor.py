from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from aihwkit_nabn import cli
from aihwkit_nabn.commands import _checks
from aihwkit_nabn.commands._checks import (
    EXTRAS,
    FAULT,
    NOTE,
    OK,
    all_checks,
    check_extras,
    check_openmmlab,
    check_python,
    check_window,
)
from aihwkit_nabn.commands._probes import PROBES, ProbeResult, run_probes
from aihwkit_nabn.commands._run import run


def _probes(**failing: str) -> dict[str, ProbeResult]:
    """Everything works but what is named."""
    return {
        name: ProbeResult(works=name not in failing, detail=failing.get(name, "1.0")) for name in [*PROBES, *failing]
    }


def _statuses(checks: list[_checks.Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_probes_report_success_failure_and_death() -> None:
    programs = {
        "good": "print('noise'); detail = 'fine'",
        "raises": "raise RuntimeError('first line\\nsecond')",
        "dies": "import os; os.kill(os.getpid(), 9)",
        "leaves": "import os; os._exit(3)",
        "after": "detail = 7",
        "silent": "pass",
    }
    results = run_probes(programs, programs)
    assert results["good"] == ProbeResult(works=True, detail="fine")
    assert results["raises"] == ProbeResult(works=False, detail="RuntimeError: first line")
    assert results["dies"].detail == "it ended the process with signal 9"
    assert results["leaves"].detail == "it ended the process with exit code 3"
    assert results["after"] == ProbeResult(works=True, detail="7")
    assert not results["silent"].works


def test_probe_that_hangs_and_interpreter_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aihwkit_nabn.commands._probes.TIMEOUT_SECONDS", 1)
    programs = {"good": "detail = 1", "hangs": "import time; time.sleep(60)"}
    results = run_probes(programs, programs)
    assert results["good"].works and results["hangs"].detail == "no answer within 1 s"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    results = run_probes(programs, programs)
    assert all(not result.works and "cannot start" in result.detail for result in results.values())


@pytest.mark.parametrize(
    ("python", "aihwkit", "torch", "status", "remedy"),
    [
        ((3, 11), "1.1.0", "2.11.0+cpu", OK, ""),
        ((3, 10), "1.1.0", "2.12.1", OK, ""),
        ((3, 12), "1.2.0", "2.13.0", OK, ""),
        ((3, 13), "1.2.0", "2.15.0", OK, ""),
        ((3, 11), "1.1.0", "2.13.0", NOTE, '"torch>=2.10,<2.13"'),
        ((3, 11), "1.1.0", "2.9.1", NOTE, '"torch>=2.10,<2.13"'),
        ((3, 13), "1.2.0", "2.12.0", NOTE, '"torch>=2.13,<2.16"'),
        ((3, 13), "1.1.0", "2.13.0", NOTE, '"aihwkit>=1.2,<1.3"'),
        ((3, 12), "1.3.0", "2.16.0", NOTE, ""),
        ((3, 11), None, "2.11.0", FAULT, '"aihwkit>=1.1,<1.2"'),
        ((3, 13), None, None, FAULT, '"aihwkit>=1.2,<1.3"'),
        ((3, 11), "1.1.0", None, FAULT, "torch torchvision"),
    ],
)
def test_version_windows(
    python: tuple[int, int], aihwkit: str | None, torch: str | None, status: str, remedy: str
) -> None:
    check = check_window(python, aihwkit, torch)
    assert check.status == status
    assert remedy in check.remedy and bool(check.remedy) == bool(remedy)


@pytest.mark.parametrize(("python", "status"), [((3, 9), FAULT), ((3, 10), OK), ((3, 13), OK), ((3, 14), FAULT)])
def test_python(python: tuple[int, int], status: str) -> None:
    assert check_python(python).status == status


def test_missing_openmmlab_is_a_note_with_a_command() -> None:
    checks = check_openmmlab({})
    assert [check.status for check in checks] == [NOTE] * 4
    assert all("openmmlab" in check.remedy or "uv sync" in check.remedy for check in checks)


def test_every_extra_that_is_missing_or_broken_is_a_note_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    listed = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = ", listed, re.MULTILINE)) - {"openmmlab"}  # each of its packages has a check
    assert extras == set(EXTRAS) and {"timm", "transformers"} <= extras <= set(PROBES)
    monkeypatch.setattr(_checks, "_is_checkout", lambda: False)
    for results in ({}, _probes(**dict.fromkeys(extras, "ImportError: x"))):
        for check in check_extras(results):
            assert check.status == NOTE and check.remedy.endswith(f"'aihwkit-nabn[{check.name}]'")
    assert {check.status for check in check_extras(_probes())} == {OK}


def test_operators_that_do_not_work_and_versions_that_do_not_fit() -> None:
    results = _probes(
        mmcv_ops="ModuleNotFoundError: No module named 'mmcv._ext'",
    )
    checks = {check.name: check for check in check_openmmlab(results)}
    assert checks["mmcv"].status == OK and checks["mmcv ops"].status == NOTE
    assert checks["mmcv ops"].remedy.startswith("install this package")
    results = _probes(mmdet="AssertionError: MMCV==2.2.0 is used but incompatible")
    checks = {check.name: check for check in check_openmmlab(results)}
    assert checks["mmdet"].status == NOTE and "onedl-mmdetection" in checks["mmdet"].remedy
    assert checks["mmseg"].status == OK


def test_compiled_operators_that_cannot_be_loaded_have_one_remedy() -> None:
    text = "ImportError: _ext.so: undefined symbol (mmcv's compiled operators cannot be loaded. Compile them aga"
    checks = {check.name: check for check in check_openmmlab(_probes(mmcv_ops=text, mmdet=text, mmseg=text))}
    for name in ("mmcv ops", "mmdet", "mmseg"):
        assert checks[name].status == NOTE and checks[name].detail.endswith("_ext.so: undefined symbol")
    remedy = checks["mmcv ops"].remedy
    assert "MMCV_WITH_OPS=1" in remedy and remedy.startswith("rm ") and "/_ext*.so" in remedy
    assert not checks["mmdet"].remedy and not checks["mmseg"].remedy


def test_broken_core_is_a_fault_and_a_broken_extra_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def checks(**failing: str) -> list[_checks.Check]:
        monkeypatch.setattr(_checks, "run_probes", lambda names: _probes(**failing))
        return all_checks()

    monkeypatch.setattr(_checks, "_is_there", lambda probe: True)
    assert not _checks.has_failed(checks())
    extras = checks(
        compiled_tile="RuntimeError: weights must be a CPU tensor",
        gpu="no driver",
        converters="RuntimeError: no C compiler when it was installed",
    )
    assert not _checks.has_failed(extras)
    converters = next(check for check in extras if check.name == "converters")
    assert converters.status == NOTE and "install a C compiler, then" in converters.remedy
    assert _statuses(extras)["compiled tile"] == NOTE and _statuses(extras)["GPU"] == NOTE
    for part in ("torch", "torchvision", "numpy", "torch_tile", "package"):
        broken = checks(**{part: "ImportError: undefined symbol"})
        assert _checks.has_failed(broken)
        assert next(check.remedy for check in broken if check.status == FAULT)


@pytest.mark.parametrize(("failing", "code"), [({}, 0), ({"torch_tile": "ImportError: undefined symbol"}, 1)])
def test_command_prints_table_remedies_and_verdict(
    failing: dict[str, str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aihwkit_nabn.commands._checks.run_probes", lambda names: _probes(**failing))
    assert run(cli.app, ["doctor"]) == code
    text = capsys.readouterr().out
    assert "compiled tile" in text and "mmcv" in text
    assert ("nabn demo" in text) == (code == 0)
    assert ("undefined symbol" in text) == (code == 1)


@pytest.mark.slow
def test_this_installation_has_a_working_core() -> None:
    names = [name for name in PROBES if not name.startswith("mm")]
    results = run_probes(names)
    for name in ("torch", "torchvision", "numpy", "torch_tile", "package"):
        assert results[name].works, results[name].detail


@pytest.mark.slow
def test_it_says_whose_operators_mmcv_has() -> None:
    pytest.importorskip("mmcv")
    found = run_probes(["mmcv_ops"])["mmcv_ops"]
    compiled = importlib.util.find_spec("mmcv._ext").origin.endswith(".so")
    assert found.works and found.detail.startswith("mmcv's own" if compiled else "aihwkit_nabn's"), found
