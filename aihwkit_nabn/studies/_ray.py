"""Jobs on a Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Iterator
from typing import Any

from aihwkit_nabn.errors import NabnError, missing_extra
from aihwkit_nabn.extension import import_extension
from aihwkit_nabn.studies._base import EXECUTORS, Event, Study, Worker

_POLL = 0.2  # seconds


@EXECUTORS.register("ray")
def run_ray(study: Study, jobs: list[Any], workers: int) -> Iterator[Event]:
    """Do jobs in actors of a Ray cluster: the one in ``RAY_ADDRESS``, or one of this machine alone.

    Every machine needs the package and, at the same paths, the data. An actor that is lost is started again, and its
    job with it.

    Raises:
        MissingDependencyError: ray is not installed.
        NabnError: a job failed for a reason the user can mend, or the cluster lost it for good.
    """
    if importlib.util.find_spec("ray") is None:
        raise missing_extra("ray", "ray")
    import ray
    from ray.util import ActorPool
    from ray.util.queue import Empty, Queue

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, workers)
    queue = Queue(actor_options={"num_cpus": 0})
    actor = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(_Actor)
    actors = [actor.remote(queue, study.imports, pickle.dumps(study)) for _ in range(min(workers, len(jobs)))]
    pool = ActorPool(actors)
    try:
        for job in jobs:
            pool.submit(lambda member, job: member.measure.remote(job), job)
        while pool.has_next():
            try:
                error = pool.get_next_unordered(timeout=_POLL)
            except TimeoutError:
                error = None
            except ray.exceptions.RayActorError as lost:
                text = f"the Ray cluster lost a worker; records are kept, the same command goes on: {lost}"
                raise NabnError(text) from lost
            try:
                while True:
                    yield queue.get(block=False)
            except Empty:
                pass
            if error is not None:
                raise NabnError(error)
    finally:
        for member in actors:
            ray.kill(member)
        queue.shutdown(force=True)
        if ours:
            ray.shutdown()


def _connect(ray: Any, workers: int) -> None:
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NabnError(f"cannot reach a Ray cluster: {(str(error).splitlines() or [''])[0]}") from error


class _Actor:
    """A worker on the cluster."""

    def __init__(self, queue: Any, imports: tuple[str, ...], packed: bytes) -> None:
        for source in imports:
            import_extension(source)
        self.queue, self.worker = queue, Worker(pickle.loads(packed))

    def measure(self, job: Any) -> str | None:
        """Do a job; returns what the user can mend, if anything."""
        import torch

        torch.set_num_threads(1)  # of this thread
        try:
            for event in self.worker.events(job):
                self.queue.put(event)
        except NabnError as error:
            return str(error)
        return None
