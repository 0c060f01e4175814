"""Where tasks are done: one file per executor, each entering itself in `EXECUTORS`.

An executor is a generator function that takes a `WorkerSetup`, the tasks and the number of workers. It yields every
record as soon as it is there and a `TaskDone` behind those of a task, in any order; a record that comes twice does no
harm. It raises `NabnError` for what the user can mend, and stops its workers when it is closed.
"""

from __future__ import annotations

import importlib
import pkgutil

from aihwkit_nabn.sweeps.executors._base import EXECUTORS, Event, Executor, TaskDone, WorkerSetup

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["EXECUTORS", "Event", "Executor", "TaskDone", "WorkerSetup"]
