"""What `nabn test` can test: one file per kind of target, each entering itself in `TARGETS`.

A target is written ``KIND:NAME``. Its file holds a function that takes the name and a `TargetOptions`, and returns a
`Task`, decorated with ``@TARGETS.register("kind")``.
"""

from __future__ import annotations

import importlib
import pkgutil

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.targets._base import TARGETS, TargetOptions, Task

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")


def load_target(target: str, options: TargetOptions) -> Task:
    """Return the model that `target` names, with its data, ready to be evaluated.

    Raises:
        NabnError: the text has not the form ``KIND:NAME``, or what it names cannot be loaded.
        UnknownNameError: there is no such kind.
    """
    kind, colon, name = target.partition(":")
    if not (colon and kind and name):
        known = ", ".join(f"{entry}:NAME" for entry in TARGETS.names())
        raise NabnError(
            f"target must be KIND:NAME or a config, got {target!r}; known: {known}, FILE.py, mmdet::FILE, mmseg::FILE"
        )
    return TARGETS.get(kind)(name, options)


__all__ = ["TARGETS", "TargetOptions", "Task", "load_target"]
