"""The checks behind `nabn doctor`, each with what to do where it fails."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aihwkit_nabn.commands._probes import PROBES, ProbeResult, run_probes
from aihwkit_nabn.stacks import (
    OPENMMLAB,
    TESTED,
    WINDOWS,
    Version,
    Window,
    compile_mmcv,
    drop_mmcv_operators,
    installer,
    judge,
    number,
    text,
)

if TYPE_CHECKING:
    from rich.console import Console

OK, NOTE, FAULT = "ok", "note", "fault"
# Optional packages, each an extra of its own name, and what they are for.
EXTRAS = {"timm": "timm:NAME", "transformers": "transformers:FOLDER", "ray": "nabn sweep --executor ray"}
_BROKEN_OPERATORS = "mmcv's compiled operators cannot be loaded"  # words of openmmlab/operators/finder.py


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's table.

    Attributes:
        name: What was looked at.
        status: ``"ok"``; ``"note"``: something optional is missing or limited; ``"fault"``: the core is broken.
        detail: What was found.
        remedy: What to do about it, with the command to run.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


PYTHONS = ((3, 10), (3, 13))


def all_checks() -> list[Check]:
    """Run every check. Nothing is raised: what fails is in the list."""
    absent = [name for name in (*OPENMMLAB, *EXTRAS) if not _is_there(name)]
    wanted = [name for name in PROBES if name.removesuffix("_ops") not in absent]
    judged = ["torch", "aihwkit", "numpy", *(name for names in OPENMMLAB.values() for name in names)]
    results = run_probes(wanted)
    return [
        check_python(sys.version_info[:2]),
        _check_package("torch", results["torch"]),
        _check_package("torchvision", results["torchvision"]),
        _check_package("numpy", results["numpy"]),
        check_window(sys.version_info[:2], version_of("aihwkit"), version_of("torch")),
        check_stack(sys.version_info[:2], {name: version_of(name) for name in judged}),
        _probed("torch tile", results["torch_tile"], results["torch_tile"].detail, _install(_best_window())),
        _check_compiled_tile(results["compiled_tile"]),
        _check_converters(results["converters"]),
        _check_own(results["package"]),
        _check_gpu(results["gpu"]),
        *check_openmmlab(results),
        *check_extras(results),
    ]


def has_failed(checks: list[Check]) -> bool:
    """Return whether the core is broken; what is merely missing or limited does not count."""
    return any(check.status == FAULT for check in checks)


def check_python(python: Version) -> Check:
    """Check the interpreter's version."""
    detail = ".".join(map(str, sys.version_info[:3])) if python == sys.version_info[:2] else text(python)
    if PYTHONS[0] <= python <= PYTHONS[1]:
        return Check(name="Python", status=OK, detail=detail)
    remedy = "make an environment with Python 3.11: uv venv --python 3.11"
    return Check(name="Python", status=FAULT, detail=f"{detail}, not within 3.10 to 3.13", remedy=remedy)


def check_window(python: Version, aihwkit: str | None, torch: str | None) -> Check:
    """Check whether Python, aihwkit and torch belong together; None: not installed."""
    name = "aihwkit"
    fitting = [window for window in WINDOWS if window.python[0] <= python <= window.python[1]]
    if aihwkit is None:
        remedy = _install(fitting[-1]) if fitting else _install(WINDOWS[0])
        return Check(name=name, status=FAULT, detail="not installed", remedy=remedy)
    if torch is None:
        return Check(
            name=name, status=FAULT, detail=f"{aihwkit}, without torch", remedy=f"{installer()} torch torchvision"
        )
    detail = f"{aihwkit} with torch {torch}"
    torch_number = number(torch)
    own = [window for window in WINDOWS if window.aihwkit == number(aihwkit)]
    if not own:
        known = "; ".join(map(str, WINDOWS))
        return Check(name=name, status=NOTE, detail=f"{detail}: a pair not tried; tried are {known}")
    low, high = own[0].torch
    if low <= torch_number <= high:
        return Check(name=name, status=OK, detail=detail)
    remedy = _install(own[0] if own[0] in fitting or not fitting else fitting[-1])
    return Check(name=name, status=NOTE, detail=f"{detail}: known to work is {own[0]}", remedy=remedy)


def check_stack(python: Version, installed: dict[str, str | None]) -> Check:
    """Check whether the test suite was run on these versions; `aihwkit_nabn.stacks` knows."""
    verdict = judge(python, installed)
    if verdict.state == TESTED:
        return Check(name="versions", status=OK, detail=f"{verdict.state} {verdict.detail}")
    wanted = " ".join(f'"{requirement}"' for requirement in verdict.install)
    remedy = f"{installer()} {wanted}  (makes the tested stack {verdict.stack})" if wanted else ""
    return Check(name="versions", status=NOTE, detail=f"{verdict.state}: {verdict.detail}", remedy=remedy)


def check_openmmlab(results: dict[str, ProbeResult]) -> list[Check]:
    """Check the optional OpenMMLab packages, of which only those that are there were probed; none is a fault."""
    checks = []
    for name, distributions in OPENMMLAB.items():
        if name not in results:
            checks.append(Check(name=name, status=NOTE, detail="not installed (optional)", remedy=_openmmlab_line()))
            continue
        found = results[name]
        source = next((entry for entry in distributions if version_of(entry)), name)
        remedy = "" if found.works else _openmmlab_line()
        if not found.works and "MMCV==" in found.detail:
            remedy = f"{installer()} onedl-mmcv onedl-mmdetection onedl-mmsegmentation  (versions that fit each other)"
        operators = results.get("mmcv_ops")
        if name not in ("mmengine", "mmcv") and operators is not None and not operators.works:
            remedy = ""  # the line on mmcv's operators has it
        detail = f"{found.detail} ({source})" if found.works else f"cannot be imported: {_cause(found)}"
        checks.append(Check(name=name, status=OK if found.works else NOTE, detail=detail, remedy=remedy))
        if name == "mmcv" and found.works:
            checks.append(_check_ops(results["mmcv_ops"]))
    return checks


def check_extras(results: dict[str, ProbeResult]) -> list[Check]:
    """Check the other optional packages, of which only those that are there were probed; none is a fault."""
    checks = []
    for name, use in EXTRAS.items():
        remedy = f"for {use}: {f'uv sync --extra {name}' if _is_checkout() else _extra_line(name)}"
        found = results.get(name)
        if found is None:
            checks.append(Check(name=name, status=NOTE, detail="not installed (optional)", remedy=remedy))
        else:
            checks.append(_probed(name, found, f"does not work: {found.detail}", remedy, NOTE))
    return checks


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def show(console: Console, checks: list[Check]) -> None:
    """Print the checks as a table, the remedies below it, and a last line with the verdict."""
    from rich.table import Table
    from rich.text import Text

    marks = {OK: ("ok", "green"), NOTE: ("note", "yellow"), FAULT: ("FAULT", "bold red")}
    table = Table(title="aihwkit_nabn: what works here", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        mark, style = marks[check.status]
        table.add_row(Text(check.name), Text(mark, style=style), Text(check.detail))
    console.print(table)
    remedies: dict[str, list[str]] = {}
    for check in checks:
        if check.remedy:
            remedies.setdefault(check.remedy, []).append(check.name)
    for remedy, names in remedies.items():
        # No wrapping: a command must be possible to copy.
        console.print(Text(f"{', '.join(names)}: {remedy}"), soft_wrap=True)
    verdict = "The core is broken; see above." if has_failed(checks) else "The core works. Try: nabn demo"
    console.print(Text(verdict, style="bold"))


def _probed(name: str, found: ProbeResult, detail: str, remedy: str, status: str = FAULT) -> Check:
    """Return what a probe found if it ran to its end; otherwise `detail`, and what to do."""
    if found.works:
        return Check(name=name, status=OK, detail=found.detail)
    return Check(name=name, status=status, detail=detail, remedy=remedy)


def _check_package(name: str, found: ProbeResult) -> Check:
    detail = "not installed" if version_of(name) is None else f"{version_of(name)} fails: {found.detail}"
    wanted = name if name == "numpy" else _torch_line(_best_window())  # torch and torchvision go together
    return _probed(name, found, detail, f"{installer()} --force-reinstall {wanted}")


def _check_compiled_tile(found: ProbeResult) -> Check:
    detail = f"does not work here: {found.detail}; this package's own presets use the torch tile and don't need it"
    return _probed("compiled tile", found, detail, _install(_best_window()), NOTE)


def _check_converters(found: ProbeResult) -> Check:
    again = f"{installer()} --force-reinstall --no-deps aihwkit-nabn"
    if _is_checkout():
        again = "uv sync --reinstall-package aihwkit-nabn"
    remedy = "" if "NABN_NATIVE" in found.detail else f"install a C compiler, then: {again}"
    return _probed("converters", found, f"not compiled ({found.detail}): torch computes them, slower", remedy, NOTE)


def _check_own(found: ProbeResult) -> Check:
    again = f"{installer()} --force-reinstall --no-deps aihwkit-nabn"
    return _probed("aihwkit_nabn", found, found.detail, f"mend what is above first; if nothing is: {again}")


def _check_gpu(found: ProbeResult) -> Check:
    if not found.works:
        # A torch that cannot be imported has a line of its own.
        remedy = "" if "ImportError" in found.detail else "update the NVIDIA driver; until then: --device cpu"
        return Check(name="GPU", status=NOTE, detail=f"not usable: {found.detail}", remedy=remedy)
    if not found.detail.startswith("built "):
        return Check(name="GPU", status=OK, detail=found.detail)
    if shutil.which("nvidia-smi") is None:
        return Check(name="GPU", status=NOTE, detail="none here; everything runs on the CPU")
    detail, remedy = "torch is built for CUDA but sees none", "compare the driver (nvidia-smi) with torch.version.cuda"
    if found.detail == "built without CUDA":
        detail = "there is one, but torch is built without CUDA"
        remedy = f"{installer()} --force-reinstall torch torchvision"
    return Check(name="GPU", status=NOTE, detail=detail, remedy=remedy)


def _check_ops(found: ProbeResult) -> Check:
    remedy = f"{drop_mmcv_operators()}  (torchvision's then serve; to compile them again: {compile_mmcv()})"
    if "No module named 'mmcv._ext'" in found.detail:
        remedy = f"install this package, which then is found by mmcv, here: {_own_line()}"
    return _probed("mmcv ops", found, f"do not work: {_cause(found)}", remedy, NOTE)


def _cause(found: ProbeResult) -> str:
    """Why something failed, without the advice that the error of mmcv's operators carries."""
    return found.detail.partition(f" ({_BROKEN_OPERATORS}")[0]


def _openmmlab_line() -> str:
    return f"for detection and segmentation: {_own_line()}"


def _own_line() -> str:
    # A checkout's own set-up takes mmcv without compiling.
    return "uv sync" if _is_checkout() else _extra_line("openmmlab")


def _extra_line(extra: str) -> str:
    return f"{installer()} 'aihwkit-nabn[{extra}]'"


def _is_checkout() -> bool:
    return (Path(__file__).parents[2] / "pyproject.toml").is_file()


def _best_window() -> Window:
    python = sys.version_info[:2]
    own = number(version_of("aihwkit") or "0")
    fitting = [window for window in WINDOWS if window.python[0] <= python <= window.python[1]]
    return next((window for window in fitting if window.aihwkit == own), (fitting or list(WINDOWS))[-1])


def _install(window: Window) -> str:
    major, minor = window.aihwkit
    return f'{installer()} "aihwkit>={major}.{minor},<{major}.{minor + 1}" {_torch_line(window)}'


def _torch_line(window: Window) -> str:
    low, high = window.torch
    return f'"torch>={text(low)},<{high[0]}.{high[1] + 1}" torchvision'


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
