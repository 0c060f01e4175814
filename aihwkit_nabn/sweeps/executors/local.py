"""Tasks in processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.sweeps.executors._base import EXECUTORS, Event, TaskDone, WorkerSetup
from aihwkit_nabn.sweeps.jobs import Task

_MOST_DEATHS = 2  # of workers at the same task


@dataclass
class _Member:
    """A worker process and the task it has."""

    process: Any
    connection: Connection
    task: Task | None = None


@EXECUTORS.register("local")
def run_local(setup: WorkerSetup, tasks: Sequence[Task], workers: int) -> Iterator[Event]:
    """Do tasks in spawned processes; the task of a process that dies is given to another.

    Raises:
        NabnError: a task failed for a reason the user can mend, or its process died twice.
    """
    # Spawned, not forked: a fork of a process in which torch has computed can hang.
    context = multiprocessing.get_context("spawn")
    waiting = deque(tasks)
    deaths: dict[str, int] = {}
    team: list[_Member] = []
    try:
        while waiting or team:
            while waiting and len(team) < workers:
                team.append(_start(context, setup))
                _give(team[-1], waiting)
            ready = wait([member.connection for member in team])
            for member in [member for member in team if member.connection in ready]:
                event = _receive(member)
                if event is None:
                    team.remove(member)
                    _note_death(member, deaths, waiting)
                    continue
                yield event
                if isinstance(event, TaskDone) and not _give(member, waiting):
                    _stop(member)
                    team.remove(member)
    finally:
        for member in team:
            _stop(member)


def _start(context: Any, setup: WorkerSetup) -> _Member:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, setup), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    return _Member(process, ours)


def _give(member: _Member, waiting: deque[Task]) -> bool:
    member.task = waiting.popleft() if waiting else None
    if member.task is not None:
        with contextlib.suppress(OSError):  # a process that died meanwhile is noticed when it is listened to
            member.connection.send(member.task)
    return member.task is not None


def _receive(member: _Member) -> Event | None:
    """Return what a worker sent; None if it has died."""
    try:
        kind, content = member.connection.recv()
    except (EOFError, OSError):
        return None
    if kind == "failed":
        raise NabnError(content)
    if kind == "crashed":
        raise RuntimeError(f"a worker process failed:\n{content}")
    event: Event = content
    return event


def _note_death(member: _Member, deaths: dict[str, int], waiting: deque[Task]) -> None:
    member.process.join()
    member.connection.close()
    if member.task is None:
        return
    key = member.task.key
    deaths[key] = deaths.get(key, 0) + 1
    if deaths[key] >= _MOST_DEATHS:
        code = member.process.exitcode or 0
        reason = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
        raise NabnError(
            f"a worker process ended {reason}, {deaths[key]} times at the same task ({key}); "
            f"is there enough memory? Fewer --workers need less. Records are kept; the same command goes on"
        )
    waiting.appendleft(member.task)


def _stop(member: _Member) -> None:
    member.connection.close()
    if member.task is not None:
        member.process.terminate()
    member.process.join(timeout=10)
    if member.process.is_alive():
        member.process.kill()
        member.process.join()


def _serve(connection: Connection, setup: WorkerSetup) -> None:
    """Do tasks until there are none; ends quietly when the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the main one decides
    try:
        _work(connection, setup)
    except (EOFError, BrokenPipeError, ConnectionError):
        return


def _work(connection: Connection, setup: WorkerSetup) -> None:
    worker: Any = None
    while True:
        task = connection.recv()
        try:
            if worker is None:
                import torch

                from aihwkit_nabn.sweeps.worker import Worker

                torch.set_num_threads(setup.threads)
                worker = Worker(setup.content, work_dir=setup.work_dir)
            worker.measure(task, lambda record: connection.send(("event", record)))
        except (BrokenPipeError, ConnectionError):
            raise
        except NabnError as error:
            connection.send(("failed", str(error)))
        except Exception:
            connection.send(("crashed", traceback.format_exc()))
        else:
            connection.send(("event", TaskDone(key=task.key)))
