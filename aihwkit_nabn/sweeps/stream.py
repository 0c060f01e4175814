"""Measuring along a stream: test images in time order on one chip whose noise moves."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.calibration import calibrate
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.chip import drift_chip, program_chip, set_read_noise_seed
from aihwkit_nabn.chip.variation import set_samples_processed
from aihwkit_nabn.data.classification import ImageSet, topk_hits
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.input_ranges import ranged_layers
from aihwkit_nabn.results import UNCALIBRATED, Record
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.sweeps.classifier import Classifier, Emit
from aihwkit_nabn.sweeps.jobs import Job, Task, digital_record
from aihwkit_nabn.sweeps.methods import TrackingEntry
from aihwkit_nabn.sweeps.spec import CALIBRATIONS, StreamSpec


def measure_stream(classifier: Classifier, task: Task, emit: Emit) -> None:
    """Run a task's stream once for each of its jobs, handing over a record per window.

    Every run meets the same chip, the same images, and in each window the same noise: read noise starts anew there,
    and noise that moves with the samples stands where the stream stands, calibration images not counted.
    """
    stream = classifier.spec.stream
    if stream is None:
        raise ValueError("measure_stream is for sweeps with a stream")
    images = _stream_images(classifier, stream)
    for end, metrics in _digital(classifier, images, stream):
        emit(digital_record(classifier.entry.name, None, metrics, end))
    analog = convert_to_noise_aware(classifier.bench.model, parse_preset(task.noise), exclude=classifier.entry.exclude)
    if ranged_layers(analog):
        with isolated_rng(derive_seed(task.chip_seed, "calibration")):
            calibrate_input_ranges(analog, classifier.range_set(None), forward_fn=classifier.forward)
    tracking = {entry.label: entry for entry in stream.tracking}
    for job in task.jobs:
        with isolated_rng(derive_seed(task.chip_seed, "stream")), evaluation_mode(analog, classifier.bench.model):
            for record in _Run(classifier, analog, job, tracking[job.method], stream).records(images):
                emit(record)


def times_of(stream: StreamSpec, t_inference: float) -> list[float]:
    """Return the time after programming in each window, in seconds."""
    if stream.drift is None:
        return [t_inference] * stream.n_windows
    first, last = stream.drift
    steps = max(stream.n_windows - 1, 1)
    return [first * math.exp(math.log(last / first) * window / steps) for window in range(stream.n_windows)]


class _Run:
    """One way of tracking, on one chip."""

    def __init__(
        self, classifier: Classifier, analog: nn.Module, job: Job, tracking: TrackingEntry, stream: StreamSpec
    ) -> None:
        self.classifier, self.analog, self.job = classifier, analog, job
        self.tracking, self.stream = tracking, stream
        self.n_samples = 0
        self.seconds = 0.0

    def records(self, images: ImageSet) -> Any:
        """Yield a record per window."""
        times = times_of(self.stream, self.job.t_inference)
        program_chip(self.analog, self.job.chip_seed, times[0])
        for window, seconds in enumerate(times):
            begin = window * self.stream.window
            if window and seconds != times[window - 1]:
                drift_chip(self.analog, seconds)
            set_read_noise_seed(self.analog, derive_seed(self.job.chip_seed, "stream", window))
            set_samples_processed(self.analog, begin)
            started, spent = time.perf_counter(), self.seconds
            hits = self._window(images, begin)
            self_seconds = self.seconds - spent
            yield Record(
                scenario=self.job.noise,
                t_inference=self.job.t_inference,
                method=self.job.method,
                method_name=self.tracking.method,
                chip_seed=self.job.chip_seed,
                axes=self.job.axes(begin + self.stream.window),
                metrics={"accuracy": 100.0 * hits / self.stream.window},
                n_calibration_samples=self.n_samples,
                seconds_calibration=self_seconds,
                seconds_evaluation=time.perf_counter() - started - self_seconds,
            )

    def _window(self, images: ImageSet, begin: int) -> int:
        hits = 0
        for start in range(begin, begin + self.stream.window, self.stream.batch):
            if start in self.tracking.at:
                self._calibrate(start)
            chunk = slice(start, start + self.stream.batch)
            with torch.inference_mode():
                logits = self.analog(images.images[chunk])
            hits += topk_hits(logits, images.labels[chunk], 1)
        return hits

    def _calibrate(self, position: int) -> None:
        if self.tracking.method == UNCALIBRATED:
            return
        batches = None
        if self.tracking.images is not None:
            batches = self.classifier.calibration_set(
                samples=self.job.samples or 1,
                calibration=CALIBRATIONS[0],
                images=self.tracking.images or PLAIN,
                chip_seed=self.job.chip_seed,
            )
        report = calibrate(
            self.analog,
            batches,
            self.tracking.method,
            reference=self.classifier.bench.model,
            forward_fn=self.classifier.forward,
            **dict(self.tracking.options),
        )
        self.n_samples += report.n_samples
        self.seconds += report.seconds
        set_samples_processed(self.analog, position)


def _stream_images(classifier: Classifier, stream: StreamSpec) -> ImageSet:
    """Return the stream: all test images in a random order, then all again in another, and so on."""
    test = classifier.test_set(None)
    order = torch.Generator().manual_seed(derive_seed(classifier.spec.seed, "stream"))
    rounds = -(-stream.images // len(test))
    numbers = torch.cat([torch.randperm(len(test), generator=order) for _ in range(rounds)])[: stream.images]
    numbers = numbers.to(test.labels.device)
    return replace(test, images=test.images[numbers], labels=test.labels[numbers])


def _digital(classifier: Classifier, images: ImageSet, stream: StreamSpec) -> list[tuple[int, dict[str, float]]]:
    if classifier.stream_digital is None:
        measured = []
        for begin in range(0, stream.images, stream.window):
            hits = 0
            for start in range(begin, begin + stream.window, stream.batch):
                chunk = slice(start, start + stream.batch)
                with torch.inference_mode():
                    hits += topk_hits(classifier.bench.model(images.images[chunk]), images.labels[chunk], 1)
            measured.append((begin + stream.window, {"accuracy": 100.0 * hits / stream.window}))
        classifier.stream_digital = measured
    return classifier.stream_digital
