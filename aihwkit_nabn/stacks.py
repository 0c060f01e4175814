"""The stacks (Python, torch, aihwkit, numpy, OpenMMLab) that the test suite is run on, and what is known of them.

`tools/stacks.py` builds and tests what stands here, `nabn doctor` compares an installation with it, and a test compares
it with the results in `docs/stacks.jsonl`. To add a stack, add it to `STACKS` and run the script.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

Version = tuple[int, int]

TESTED, UNTESTED, BROKEN = "tested", "untested", "known not to work"

# import name: the distributions that provide it, the maintained fork first
OPENMMLAB = {
    "mmengine": ("onedl-mmengine", "mmengine"),
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-lite"),
    "mmdet": ("onedl-mmdetection", "mmdet"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation"),
}

# What each flavour of OpenMMLab is installed with.
FLAVOURS: dict[str, dict[str, str]] = {
    "none": {},
    "forks": {
        "onedl-mmengine": "0.10.12",
        "onedl-mmcv": "2.3.6",
        "onedl-mmdetection": "3.5.1",
        "onedl-mmsegmentation": "1.4.2",
    },
    "upstream": {"mmengine": "0.10.7", "mmcv": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2"},
}
_IN_WORDS = {
    "none": "core only",
    "forks": "OpenMMLab's forks",
    "upstream": "OpenMMLab's own packages",
    "mixed": "these OpenMMLab packages",
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """Versions that an aihwkit release's compiled tile was seen to work with; both ends included."""

    aihwkit: Version
    torch: tuple[Version, Version]
    python: tuple[Version, Version]

    def __str__(self) -> str:
        return (
            f"aihwkit {text(self.aihwkit)} with torch {text(self.torch[0])} to {text(self.torch[1])} "
            f"on Python {text(self.python[0])} to {text(self.python[1])}"
        )


WINDOWS = (
    Window(aihwkit=(1, 1), torch=((2, 10), (2, 12)), python=((3, 10), (3, 12))),
    Window(aihwkit=(1, 2), torch=((2, 13), (2, 15)), python=((3, 12), (3, 13))),
)


@dataclass(frozen=True)
class Stack:
    """Versions that are installed and tested together.

    Attributes:
        name: What `tools/stacks.py` and `nabn doctor` call it.
        python: Major and minor version of the interpreter; of the packages, the exact versions.
        openmmlab: A key of `FLAVOURS`. With ``"none"`` only the core is tested.
        thorough: Whether the slow tests are run on it too.
        fault: What does not work; empty where everything does.
    """

    name: str
    python: str
    torch: str
    torchvision: str
    aihwkit: str
    numpy: str
    openmmlab: str = "none"
    thorough: bool = False
    fault: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name} (Python {self.python}, torch {self.torch}, aihwkit {self.aihwkit}, numpy {self.numpy}, "
            f"{_IN_WORDS[self.openmmlab]})"
        )

    @property
    def key(self) -> tuple[Version, Version, Version]:
        """What decides whether compiled parts fit: the minor versions of Python, torch and aihwkit."""
        return number(self.python), number(self.torch), number(self.aihwkit)


_NO_TILE = "aihwkit's compiled tile cannot be constructed"
# Of those with the same Python the first is the one that is recommended.
STACKS = (
    # name, Python, torch, torchvision, aihwkit, numpy, OpenMMLab
    Stack("A-forks", "3.11", "2.11.0", "0.26.0", "1.1.0", "2.4.6", "forks", thorough=True),
    Stack("A-upstream", "3.11", "2.11.0", "0.26.0", "1.1.0", "1.26.4", "upstream"),
    Stack("B-forks", "3.12", "2.13.0", "0.28.0", "1.2.0", "2.5.5", "forks"),
    Stack("forks-310", "3.10", "2.10.0", "0.25.0", "1.1.0", "2.2.6", "forks"),
    Stack("forks-311", "3.11", "2.12.1", "0.27.1", "1.1.0", "2.4.6", "forks"),
    Stack("forks-313", "3.13", "2.15.0", "0.29.2", "1.2.0", "2.5.5", "forks"),
    Stack("bad-torch213", "3.11", "2.13.0", "0.28.0", "1.1.0", "2.4.6", fault=_NO_TILE),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is known of the versions that are installed.

    Attributes:
        state: ``"tested"``, ``"untested"`` or ``"known not to work"``.
        detail: With which stack, or why not.
        install: Requirements that make it a tested stack; empty where nothing better is known.
        stack: The name of the stack that they make.
    """

    state: str
    detail: str
    install: tuple[str, ...] = ()
    stack: str = ""


def judge(python: Version, installed: Mapping[str, str | None]) -> Verdict:
    """Say whether an installation is one of the tested stacks; patch versions do not count.

    Args:
        python: The interpreter's major and minor version.
        installed: Version by distribution; None or left out where it is missing.
    """
    missing = [name for name in ("torch", "aihwkit", "numpy") if not installed.get(name)]
    if missing:
        return _otherwise(BROKEN, f"{', '.join(missing)} not installed", python)
    torch, aihwkit, numpy = (str(installed[name]) for name in ("torch", "aihwkit", "numpy"))
    same = [stack for stack in STACKS if stack.key == (python, number(torch), number(aihwkit))]
    faulty = next((stack for stack in same if stack.fault), None)
    if faulty is not None:
        return _otherwise(BROKEN, f"{faulty.fault} (stack {faulty})", python)
    window = next((entry for entry in WINDOWS if entry.aihwkit == number(aihwkit)), None)
    if window is not None and not window.torch[0] <= number(torch) <= window.torch[1]:
        detail = f"aihwkit {aihwkit}'s compiled tile needs torch {text(window.torch[0])} to {text(window.torch[1])}"
        return _otherwise(BROKEN, detail, python)
    if not same:
        return _otherwise(UNTESTED, "no stack has this Python with this torch and aihwkit", python)
    return _among_tested(same, numpy, flavour(installed))


def flavour(installed: Mapping[str, str | None]) -> str:
    """Return which of OpenMMLab's packages there are: a key of `FLAVOURS`, or ``"mixed"`` for any others."""
    names = {name for names in OPENMMLAB.values() for name in names}
    found = {name: str(installed[name]) for name in names if installed.get(name)}
    if not found:
        return "none"
    for label, pins in FLAVOURS.items():
        if found.keys() == pins.keys() and all(number(found[name]) == number(pins[name]) for name in pins):
            return label
    return "mixed"


def installer() -> str:
    """Return the command that installs packages into this environment: one made by uv has no pip."""
    return "pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {sys.prefix}"


def drop_mmcv_operators() -> str:
    """Return the command that deletes mmcv's compiled operators in this environment."""
    mmcv = importlib.util.find_spec("mmcv")
    folders = list(mmcv.submodule_search_locations or ()) if mmcv else []
    return f"rm {folders[0] if folders else 'mmcv'}/_ext*.so"


def compile_mmcv() -> str:
    """Return the command that puts the installed mmcv into this environment again, compiled."""
    requirement = "onedl-mmcv"
    for name in OPENMMLAB["mmcv"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            requirement = f"{name.removesuffix('-lite')}=={importlib.metadata.version(name)}"
            break
    again = f"{installer()} --no-cache-dir --no-deps --force-reinstall"
    first = f"{installer()} 'setuptools<81' wheel ninja psutil"
    return f"{first} && MMCV_WITH_OPS=1 {again} --no-build-isolation {requirement}"


def number(version: str) -> Version:
    """Return the major and minor number of a version; (0, 0) where it has none."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def text(version: Version) -> str:
    """Return a version as it is written."""
    return ".".join(map(str, version))


def _among_tested(same: list[Stack], numpy: str, label: str) -> Verdict:
    alike = [stack for stack in same if number(stack.numpy)[0] == number(numpy)[0]]
    for stack in alike:
        if label in (stack.openmmlab, "none"):
            return Verdict(state=TESTED, detail=f"as stack {stack}")
    if alike:
        detail = f"with {_IN_WORDS[label]}; the core is tested as stack {alike[0]}"
        return Verdict(state=UNTESTED, detail=detail)
    nearest = same[0]
    detail = f"with numpy {numpy}; the nearest is stack {nearest}"
    return Verdict(state=UNTESTED, detail=detail, install=(f"numpy=={nearest.numpy}",), stack=nearest.name)


def _otherwise(state: str, detail: str, python: Version) -> Verdict:
    """Name the first stack of this Python that works: the list has the recommended one first."""
    for stack in STACKS:
        if number(stack.python) == python and not stack.fault:
            names = ("torch", "torchvision", "aihwkit", "numpy")
            pins = tuple(f"{name}=={getattr(stack, name)}" for name in names)
            return Verdict(state=state, detail=detail, install=pins, stack=stack.name)
    return Verdict(state=state, detail=detail)
