"""The grid of a sweep: every measurement as a job with a key that does not depend on any order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.evaluation.scenario import UNCALIBRATED
from aihwkit_nabn.sweeps.methods import MethodEntry
from aihwkit_nabn.sweeps.record import record_key
from aihwkit_nabn.sweeps.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, or one run along a stream, which gives a measurement per window.

    Attributes:
        model: Name of the model's entry.
        noise: Noise setting.
        t_inference: Seconds after programming, at the beginning of a stream.
        chip_seed: The chip.
        jpeg: Quality of the images, or None.
        method: Label of the method or of the tracking.
        samples: Calibration images, or None where the method takes none.
        calibration: Where they come from, or None.
    """

    model: str
    noise: str
    t_inference: float
    chip_seed: int
    jpeg: int | None
    method: str
    samples: int | None
    calibration: str | None

    @property
    def key(self) -> str:
        """The job as text: the key of its record."""
        return record_key(**vars(self), position=None)

    def keys(self, spec: SweepSpec) -> list[str]:
        """Return the keys of all records the job gives."""
        if spec.stream is None:
            return [self.key]
        ends = range(spec.stream.window, spec.stream.images + 1, spec.stream.window)
        return [record_key(**vars(self), position=end) for end in ends]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Jobs on one chip, done one after the other by one worker.

    Attributes:
        model: Name of the model's entry.
        noise: Noise setting.
        t_inference: Seconds after programming.
        chip_seed: The chip.
        jpeg: Quality of the images, or None.
        jobs: What is to be measured.
    """

    model: str
    noise: str
    t_inference: float
    chip_seed: int
    jpeg: int | None
    jobs: tuple[Job, ...]

    @property
    def key(self) -> str:
        """The task as text."""
        return record_key(
            model=self.model,
            noise=self.noise,
            t_inference=self.t_inference,
            chip_seed=self.chip_seed,
            jpeg=self.jpeg,
            method="",
            samples=None,
            calibration=None,
            position=None,
        )


def all_jobs(spec: SweepSpec) -> list[Job]:
    """Return every job of a sweep."""
    return [
        Job(
            model=model.name,
            noise=noise,
            t_inference=seconds,
            chip_seed=chip_seed,
            jpeg=jpeg,
            method=method,
            samples=samples,
            calibration=calibration,
        )
        for model in spec.models
        for noise in spec.noise
        for seconds in spec.time
        for chip_seed in spec.chip_seeds
        for jpeg in spec.jpeg
        for method, samples, calibration in _measured(spec, jpeg)
    ]


def tasks_of(spec: SweepSpec, done: Collection[str]) -> list[Task]:
    """Return what is left to do, chip by chip.

    Args:
        spec: The sweep.
        done: Keys of the records that are there.
    """
    done = set(done)
    groups: dict[tuple[str, str, float, int, int | None], list[Job]] = {}
    for job in all_jobs(spec):
        if any(key not in done for key in job.keys(spec)):
            groups.setdefault((job.model, job.noise, job.t_inference, job.chip_seed, job.jpeg), []).append(job)
    return [
        Task(model=model, noise=noise, t_inference=seconds, chip_seed=chip, jpeg=jpeg, jobs=tuple(jobs))
        for (model, noise, seconds, chip, jpeg), jobs in groups.items()
    ]


def _measured(spec: SweepSpec, jpeg: int | None) -> Iterator[tuple[str, int | None, str | None]]:
    if spec.stream is not None:
        for tracking in spec.stream.tracking:
            takes = tracking.images is not None
            for samples in spec.samples if takes else (None,):
                yield tracking.label, samples, spec.calibration[0] if takes else None
        return
    for method in spec.methods:
        if method.clean_reference and jpeg is None:
            continue  # the same as without
        if not takes_images(method):
            yield method.label, None, None
            continue
        for calibration in spec.calibration:
            for samples in spec.samples:
                yield method.label, samples, calibration


def takes_images(method: MethodEntry) -> bool:
    """Return whether a method calibrates with images of a set."""
    return method.method != UNCALIBRATED and CALIBRATION_METHODS.get(method.method).needs_batches
