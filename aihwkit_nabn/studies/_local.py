"""Jobs in processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import SyncManager
from queue import Empty
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.processes import end_with_parent
from aihwkit_nabn.studies._base import EXECUTORS, Event, Study, Worker

_POLL = 0.05  # seconds


class WorkersDied(Exception):
    """A worker process is gone, and with it all that were at work."""


@EXECUTORS.register("local")
def run_local(study: Study, jobs: list[Any], workers: int) -> Iterator[Event]:
    """Do jobs in spawned processes, one thread each.

    Raises:
        NabnError: a job failed for a reason the user can mend.
        WorkersDied: a process was killed.
    """
    # Spawned, not forked: a fork of a process in which torch has computed can hang.
    context = multiprocessing.get_context("spawn")
    packed = pickle.dumps(study)
    others = set(multiprocessing.active_children())
    with contextlib.ExitStack() as stack:
        stack.callback(_end_all, others)
        # A manager's queue, which a process that is killed in the middle cannot leave locked.
        manager = SyncManager(ctx=context)
        manager.start(end_with_parent)
        stack.callback(manager.shutdown)
        queue = manager.Queue()
        pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(queue, study.imports, packed))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        pending = {pool.submit(_measure, job) for job in jobs}
        while pending:
            done, pending = wait(pending, timeout=_POLL, return_when=FIRST_COMPLETED)
            with contextlib.suppress(Empty):
                while True:
                    yield queue.get_nowait()
            for future in done:
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise WorkersDied from error


def _end_all(others: set[Any]) -> None:
    """End the processes that were started here, whatever they are doing."""
    for process in multiprocessing.active_children():
        if process not in others:
            process.terminate()


_worker: Worker | None = None  # of a worker process
_given: tuple[Any, tuple[str, ...], bytes] | None = None


def _start(queue: Any, imports: tuple[str, ...], packed: bytes) -> None:
    import torch

    global _given
    end_with_parent()
    torch.set_num_threads(1)
    _given = queue, imports, packed


def _measure(job: Any) -> None:
    """Do a job; whatever goes wrong comes back as text, for not every error can be sent."""
    global _worker
    assert _given is not None
    queue, imports, packed = _given
    try:
        if _worker is None:
            for source in imports:  # before what is packed names something of theirs
                import_extension(source)
            _worker = Worker(pickle.loads(packed))
        for event in _worker.events(job):
            queue.put(event)
    except NabnError as error:
        raise NabnError(str(error)) from None
    except Exception:
        raise RuntimeError(f"a worker process failed:\n{traceback.format_exc()}") from None
