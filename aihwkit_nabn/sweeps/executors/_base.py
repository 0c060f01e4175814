"""What an executor is: it has tasks done somewhere, and hands over what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aihwkit_nabn.registry import Registry
from aihwkit_nabn.results import Record
from aihwkit_nabn.sweeps.jobs import Task


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What every worker is told.

    Attributes:
        content: The sweep as its file has it.
        work_dir: Folder for logs of configs.
        threads: Threads of one worker's computations.
    """

    content: Any
    work_dir: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A task is finished.

    Attributes:
        key: The task's.
    """

    key: str


Event = Record | TaskDone
Executor = Callable[[WorkerSetup, Sequence[Task], int], Iterator[Event]]
EXECUTORS: Registry[Executor] = Registry("executor")
