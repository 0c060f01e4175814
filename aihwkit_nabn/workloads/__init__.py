"""What can be put on chips and measured: one file per kind of workload, each entering itself in `WORKLOADS`.

A workload is written ``KIND`` or ``KIND:NAME``, or is a config's path or the place of a function. Its file ends with
``WORKLOADS.register("kind")(WorkloadKind(load=...))``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.extension import is_module
from aihwkit_nabn.workloads._base import (
    SOURCES,
    WORKLOADS,
    CalibrationRequest,
    LoadSettings,
    Workload,
    WorkloadKind,
)

_BY_PLACE = ("config", "function")  # kinds that nobody writes by name

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")


def find_workload(text: str) -> tuple[WorkloadKind, str]:
    """Return the kind of a workload, and its name within the kind.

    Raises:
        NabnError: the text is none of the forms.
        UnknownNameError: there is no such kind.
    """
    if not isinstance(text, str):
        raise NabnError(f"a workload must be text, {', '.join(_forms())}, got {text!r}")
    if is_config(text):
        return WORKLOADS.get("config"), text
    if is_function(text):
        return WORKLOADS.get("function"), text
    kind, colon, name = text.partition(":")
    if kind not in WORKLOADS or kind in _BY_PLACE:
        raise UnknownNameError("workload", text, _forms())
    found = WORKLOADS.get(kind)
    if found.named != bool(name) or bool(colon) != found.named:
        raise NabnError(f"workload {text!r} must be written {kind}:NAME" if found.named else f"{kind} takes no name")
    return found.of_names.get(name, found), name


def load_workload(text: str, settings: LoadSettings | None = None, **options: Any) -> Workload:
    """Return a trained model with its data, ready to be measured.

    Args:
        text: ``digits``, ``cifar10``, ``torchvision:NAME``, ``timm:NAME``, ``transformers:FOLDER``, a function of your
            own (``FILE.py:NAME``, ``PACKAGE.MODULE:NAME``), a config of mmdetection or mmsegmentation (``FILE.py``,
            ``mmdet::FILE``, ``mmseg::FILE``), or what an extension has registered.
        settings: How much of the data, how it is read.
        options: What the kind takes; for most ``checkpoint``, the file with the weights.

    Raises:
        NabnError: an option is unknown or missing, or what the text names cannot be loaded.
        UnknownNameError: there is no such kind.

    Example:
        >>> workload = load_workload("digits")
        >>> sorted(workload.eval_fn(workload.model))
        ['accuracy']
    """
    kind, name = find_workload(text)
    settings = LoadSettings() if settings is None else settings
    if not isinstance(settings, LoadSettings):
        raise NabnError(f"settings must be LoadSettings(...), got {settings!r}")
    if settings.launcher != "none" and not is_config(text):
        raise NabnError(f"launcher is for configs of mmdetection and mmsegmentation, which {text} is not")
    workload = kind.load(name, settings, **kind.checked(text, options))
    if not isinstance(workload, Workload):
        raise NabnError(f"the kind of workload {text!r} must return a Workload, got {workload!r}")
    return workload


def is_config(text: str) -> bool:
    """Return whether a workload means a config file."""
    return text.endswith(".py") or "::" in text


def is_function(text: str) -> bool:
    """Return whether a workload means a function of the user's: ``FILE.py:NAME``, ``PACKAGE.MODULE:NAME``."""
    where, _, name = text.rpartition(":")
    if not name.isidentifier() or text.partition(":")[0] in WORKLOADS or "::" in text:
        return False
    return where.endswith(".py") or is_module(where)


def _forms() -> list[str]:
    kinds = [f"{kind}:NAME" if WORKLOADS.get(kind).named else kind for kind in WORKLOADS if kind not in _BY_PLACE]
    return [*kinds, "FILE.py", "mmdet::FILE", "mmseg::FILE", "FILE.py:FUNCTION", "PACKAGE.MODULE:FUNCTION"]


__all__ = [
    "SOURCES",
    "WORKLOADS",
    "CalibrationRequest",
    "LoadSettings",
    "Workload",
    "WorkloadKind",
    "find_workload",
    "is_config",
    "is_function",
    "load_workload",
]
