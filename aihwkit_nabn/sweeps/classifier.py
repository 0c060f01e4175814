"""Measuring a classifier: the digital model, and every method of a task on the task's chip."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.data.classification import ImageSet, accuracy_on
from aihwkit_nabn.evaluation import MethodSpec, Scenario, evaluate
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.results import Record
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.sweeps.jobs import Job, Task, digital_record, takes_images
from aihwkit_nabn.sweeps.models import Bench, ModelEntry
from aihwkit_nabn.sweeps.sets import CalibrationChoice, CalibrationSet
from aihwkit_nabn.sweeps.spec import CALIBRATIONS, SweepSpec

_RANGE_IMAGES = 256  # for static input ranges, the same for all methods whatever their own sets are

Emit = Callable[[Record], None]


class Classifier:
    """A model of a sweep with its images, loaded once per process.

    Args:
        spec: The sweep.
        entry: The model.
    """

    def __init__(self, spec: SweepSpec, entry: ModelEntry) -> None:
        self.spec, self.entry = spec, entry
        self.bench: Bench = entry.load()
        self._tests: dict[int | None, ImageSet] = {}
        self._digital: dict[int | None, dict[str, float]] = {}
        self.stream_digital: list[tuple[int, dict[str, float]]] | None = None

    @cached_property
    def test_numbers(self) -> list[int]:
        """Numbers of the test images, in random order."""
        total = len(self.bench.test.labels)
        order = torch.Generator().manual_seed(derive_seed(self.spec.seed, "test images"))
        return torch.randperm(total, generator=order)[: self.spec.test_images].tolist()

    def test_set(self, jpeg: int | None) -> ImageSet:
        """Return the test images as the network takes them."""
        if jpeg not in self._tests:
            images = self.bench.test.plain(self.test_numbers, jpeg)
            labels = self.bench.test.labels[torch.tensor(self.test_numbers)]
            self._tests[jpeg] = ImageSet(images=images, labels=labels).to(self.bench.device)
        return self._tests[jpeg]

    def calibration_set(self, *, samples: int, calibration: str, images: str, **more: Any) -> CalibrationSet:
        """Return a calibration set of this sweep's seed; see `CalibrationChoice` for the rest."""
        choice = CalibrationChoice(
            samples=samples,
            calibration=calibration,
            images=images,
            jpeg=more.get("jpeg"),
            clean_reference=more.get("clean_reference", False),
            chip_seed=more.get("chip_seed", 0),
            seed=self.spec.seed,
            batch=self.spec.calibration_batch,
        )
        return CalibrationSet(self.bench, choice)

    def range_set(self, jpeg: int | None) -> CalibrationSet:
        """Return the images that static input ranges are set from."""
        samples = min(_RANGE_IMAGES, len(self.bench.train.labels))
        return self.calibration_set(samples=samples, calibration=CALIBRATIONS[0], images=PLAIN, jpeg=jpeg)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the chip: of a pair, on the compressed images."""
        images = batch[1] if isinstance(batch, tuple) else batch
        return model(images.to(self.bench.device))

    def reference_forward(self, model: nn.Module, batch: Any) -> Any:
        """Run the reference: of a pair, on the clean images."""
        images = batch[0] if isinstance(batch, tuple) else batch
        return model(images.to(self.bench.device))

    def measure(self, task: Task, emit: Emit) -> None:
        """Measure a task's jobs on its chip, handing over each record when it is there."""
        wanted = {job.key: job for job in task.jobs}
        methods = {entry.label: entry for entry in self.spec.methods}
        sets: dict[str, CalibrationSet] = {PLAIN: self.range_set(task.jpeg)}
        specs = []
        for job in task.jobs:
            entry = methods[job.method]
            name = None
            if takes_images(entry):
                name = job.key
                sets[name] = self._set_of(job, entry.images or PLAIN, entry.clean_reference)
            specs.append(MethodSpec(entry.method, batches=name, label=job.key, options=dict(entry.options)))
        scenario = Scenario(name=task.key, rpu_config=parse_preset(task.noise), t_inference=task.t_inference)
        accuracy = accuracy_on(self.test_set(task.jpeg), batch_size=self.spec.test_batch)

        def eval_fn(model: nn.Module) -> dict[str, float]:
            if model is not self.bench.model:
                return accuracy(model)
            if task.jpeg not in self._digital:
                self._digital[task.jpeg] = accuracy(model)
            emit(digital_record(self.entry.name, task.jpeg, self._digital[task.jpeg]))
            return dict(self._digital[task.jpeg])

        def on_record(record: Record) -> None:
            if record.method in wanted:  # evaluate adds the uncalibrated chip where it was measured before
                emit(wanted[record.method].named(record))

        evaluate(
            self.bench.model,
            scenarios=[scenario],
            methods=specs,
            chips=1,
            seed=task.chip_seed,
            calibration_batches=sets,
            eval_fn=eval_fn,
            forward_fn=self.forward,
            reference_forward_fn=self.reference_forward,
            exclude=self.entry.exclude,
            progress=False,
            on_record=on_record,
        )

    def _set_of(self, job: Job, images: str, clean_reference: bool) -> CalibrationSet:
        return self.calibration_set(
            samples=job.samples or 1,
            calibration=job.calibration or CALIBRATIONS[0],
            images=images,
            jpeg=job.jpeg,
            clean_reference=clean_reference,
            chip_seed=job.chip_seed,
        )
