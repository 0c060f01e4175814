"""What a study is: jobs that make records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.registry import Registry
from aihwkit_nabn.results import Record
from aihwkit_nabn.workloads import LoadSettings, Workload, load_workload


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something else than a measurement that a study's log keeps, once: plain values under a name."""

    name: str
    value: Any


class Study(ABC):
    """A resumable set of measurements, sent to worker processes as it is: it holds plain values.

    A study of your own needs the three methods below; `run_study` does the rest.

    Attributes:
        imports: Python files or modules with what the user has registered; every worker imports them first.
    """

    imports: tuple[str, ...] = ()

    @abstractmethod
    def jobs(self, known: Mapping[str, Record]) -> list[Any]:
        """Return what is left to do, as objects that can be sent to a process.

        It is asked again when those are done, so later jobs may depend on what earlier ones have found.

        Args:
            known: The records that are there, by key.
        """

    @abstractmethod
    def measure(self, job: Any, loaded: Any) -> Iterator[Record | Note]:
        """Do a job, yielding each record as soon as it is there; which other jobs were done before makes no difference.

        Args:
            job: One of `jobs`.
            loaded: What `load` returned.
        """

    def place(self, job: Any) -> Hashable:
        """Return what a job needs loaded: its key, the same for jobs that share it."""
        return None

    def load(self, place: Any) -> Any:
        """Return what jobs of a place share: a workload, say. Called once per process."""
        return None

    def total(self, known: Mapping[str, Record]) -> int | None:
        """Return how many records there will be in all; None: not known yet."""
        return None


@dataclass(frozen=True, kw_only=True)
class WorkloadSource:
    """Where every process finds a workload: what `load_workload` takes."""

    text: str
    settings: LoadSettings = field(default_factory=LoadSettings)
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Workload:
        """Return the workload."""
        return load_workload(self.text, self.settings, **self.options)


class WorkloadStudy(Study):
    """A study of one workload. What is a `functools.cached_property` of it is made anew in every process.

    Args:
        workload: The workload itself, for a study in this process, or where every process finds it.
        imports: See `Study`.
    """

    def __init__(self, workload: Workload | WorkloadSource, imports: tuple[str, ...] = ()) -> None:
        self.source, self.imports = workload, imports

    @cached_property
    def workload(self) -> Workload:
        """The workload, loaded."""
        return self.source.load() if isinstance(self.source, WorkloadSource) else self.source

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self.source, WorkloadSource):
            raise NabnError("worker processes need a workload by name: give the study a WorkloadSource, or no workers")
        made = {name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)}
        return {name: value for name, value in vars(self).items() if name not in made}


class Worker:
    """Does jobs of a study, in whichever process it is made."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._loaded: dict[Hashable, Any] = {}

    def events(self, job: Any) -> Iterator[Record | Note]:
        """Do a job."""
        place = self.study.place(job)
        if place not in self._loaded:
            self._loaded[place] = self.study.load(place)
        yield from self.study.measure(job, self._loaded[place])


Event = Record | Note
Executor = Callable[[Study, list[Any], int], Iterator[Event]]
"""Called with a study, its jobs and a number of workers; yields what comes of them, in any order."""

EXECUTORS: Registry[Executor] = Registry("executor")
