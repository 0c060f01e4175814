"""Tasks on a Ray cluster."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from aihwkit_nabn.errors import NabnError, missing_extra
from aihwkit_nabn.sweeps.executors._base import EXECUTORS, Event, TaskDone, WorkerSetup
from aihwkit_nabn.sweeps.jobs import Task


@EXECUTORS.register("ray")
def run_ray(setup: WorkerSetup, tasks: Sequence[Task], workers: int) -> Iterator[Event]:
    """Do tasks in actors of a Ray cluster: the one in ``RAY_ADDRESS``, or one of this machine alone.

    Every machine needs the package and, at the same paths, the data. An actor that is lost is started again, and its
    task with it.

    Raises:
        MissingDependencyError: ray is not installed.
        NabnError: a task failed for a reason the user can mend, or the cluster lost it for good.
    """
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("ray", "ray")
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    actor_class = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(_Actor)
    actors = [actor_class.remote(setup) for _ in range(min(workers, len(tasks)))]
    waiting = deque(tasks)
    running: dict[Any, Any] = {}
    try:
        for actor in actors:
            running[_begin(actor, waiting.popleft())] = actor
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)
            for stream in ready:
                event = _next(ray, stream)
                if event is not None:
                    yield event
                    continue
                actor = running.pop(stream)
                if waiting:
                    running[_begin(actor, waiting.popleft())] = actor
    finally:
        for actor in actors:
            ray.kill(actor)
        if ours:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    import os

    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NabnError(f"cannot reach a Ray cluster: {(str(error).splitlines() or [''])[0]}") from error


def _begin(actor: Any, task: Task) -> Any:
    return actor.measure.options(num_returns="streaming").remote(task)


def _next(ray: Any, stream: Any) -> Event | None:
    """Return the stream's next event; None at its end."""
    try:
        kind, content = ray.get(next(stream))
    except StopIteration:
        return None
    except ray.exceptions.RayActorError as error:
        raise NabnError(
            f"the Ray cluster lost a worker; records are kept, the same command goes on: {error}"
        ) from error
    if kind == "failed":
        raise NabnError(content)
    event: Event = content
    return event


class _Actor:
    """A worker process on the cluster."""

    def __init__(self, setup: WorkerSetup) -> None:
        from aihwkit_nabn.sweeps.worker import Worker

        self.threads = setup.threads
        self.worker = Worker(setup.content, work_dir=setup.work_dir)

    def measure(self, task: Task) -> Iterator[tuple[str, Any]]:
        """Do a task, giving records as they come."""
        import queue
        import threading

        events: queue.SimpleQueue[tuple[str, Any] | BaseException] = queue.SimpleQueue()

        def work() -> None:
            import torch

            try:
                torch.set_num_threads(self.threads)  # of this thread, not of the actor's own
                self.worker.measure(task, lambda record: events.put(("event", record)))
                events.put(("end", None))
            except NabnError as error:
                events.put(("failed", str(error)))
            except BaseException as error:  # raised again where the caller is
                events.put(error)

        # A generator must give what a callback is told: the work is done beside it.
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event[0] == "end":
                yield "event", TaskDone(key=task.key)
                return
            yield event
            if event[0] == "failed":
                return
