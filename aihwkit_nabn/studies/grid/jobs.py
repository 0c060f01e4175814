"""The grid of a sweep: each measurement has a key that does not depend on any order, and is made chip by chip."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED, Record
from aihwkit_nabn.results.record import key_of
from aihwkit_nabn.studies.grid.methods import MethodEntry
from aihwkit_nabn.studies.grid.spec import SweepSpec


@dataclass(frozen=True, kw_only=True)
class Measurement:
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

    def axes(self, position: int | None = None) -> dict[str, Any]:
        """Return the axes of its record; `position` is the end of a window of the stream."""
        return _axes(self.model, self.jpeg, self.samples, self.calibration, position)

    def key(self, position: int | None = None) -> str:
        """Return the key of its record."""
        return key_of(self.noise, self.t_inference, self.chip_seed, self.method, self.axes(position))

    def keys(self, spec: SweepSpec) -> list[str]:
        """Return the keys of all its records."""
        return [self.key(end) for end in ([None] if spec.stream is None else spec.stream.ends)]

    @property
    def chip(self) -> str:
        """The chip that it is made on, as text."""
        axes = {"model": self.model, "jpeg": self.jpeg}
        return key_of(self.noise, self.t_inference, self.chip_seed, None, axes)

    def named(self, record: Record) -> Record:
        """Return what the protocol measured as a record of the sweep."""
        place: dict[str, Any] = {"scenario": self.noise, "group": None, "strength": None}
        return replace(record, **place, t_inference=self.t_inference, method=self.method, axes=self.axes())


ChipJob = tuple[Measurement, ...]
"""Measurements on one chip, made one after the other by one worker."""


def digital_record(model: str, jpeg: int | None, metrics: dict[str, float], position: int | None = None) -> Record:
    """Return the digital model's record on images of this quality, or in a window of the stream."""
    axes = _axes(model, jpeg, None, None, position)
    return Record(scenario=DIGITAL, method=DIGITAL, method_name=DIGITAL, chip_seed=None, metrics=metrics, axes=axes)


def _axes(
    model: str, jpeg: int | None, samples: int | None, calibration: str | None, position: int | None
) -> dict[str, Any]:
    return {"model": model, "jpeg": jpeg, "samples": samples, "calibration": calibration, "position": position}


def all_measurements(spec: SweepSpec) -> list[Measurement]:
    """Return every measurement of a sweep."""
    return [
        Measurement(
            model=model.name,
            noise=noise,
            t_inference=float(scenario.t_inference),
            chip_seed=chip_seed,
            jpeg=jpeg,
            method=method,
            samples=samples,
            calibration=calibration,
        )
        for model in spec.models
        for noise, scenario in spec.settings()
        for chip_seed in spec.chip_seeds
        for jpeg in spec.jpeg
        for method, samples, calibration in _measured(spec, jpeg)
    ]


def chip_jobs(spec: SweepSpec, done: Collection[str]) -> list[ChipJob]:
    """Return what is left to do, chip by chip; `done` are the keys of the records that are there."""
    done = set(done)
    jobs: dict[str, list[Measurement]] = {}
    for each in all_measurements(spec):
        if any(key not in done for key in each.keys(spec)):
            jobs.setdefault(each.chip, []).append(each)
    return [tuple(job) for job in jobs.values()]


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
