"""Measuring along a stream: test images in time order on one chip whose noise moves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aihwkit_nabn.chip import drift_chip, set_read_noise_seed
from aihwkit_nabn.chip.variation import set_samples_processed
from aihwkit_nabn.data.classification import ImageSet, topk_hits
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.results import UNCALIBRATED, Record
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies._base import Note
from aihwkit_nabn.studies.grid.jobs import ChipJob, Measurement, digital_record
from aihwkit_nabn.studies.grid.methods import TrackingEntry
from aihwkit_nabn.studies.grid.spec import StreamSpec

if TYPE_CHECKING:
    from aihwkit_nabn.studies.grid.study import LoadedModel


def measure_stream(job: ChipJob, loaded: LoadedModel) -> Iterator[Record | Note]:
    """Run the stream once for each of a chip's measurements, yielding a record per window.

    Every run meets the same chip, the same images, and in each window the same noise: read noise starts anew there,
    and noise that moves with the samples stands where the stream stands, calibration images not counted.
    """
    stream = loaded.spec.stream
    if stream is None or loaded.workload.test_set is None:
        raise ValueError("measure_stream is for sweeps with a stream, of classifiers")
    images = _stream_images(loaded.workload.test_set(), loaded.spec.seed, stream)
    if loaded.stream_digital is None:
        loaded.stream_digital = list(_digital(loaded.workload.model, images, stream))
    for end, metrics in loaded.stream_digital:
        yield digital_record(job[0].model, None, metrics, end)
    protocol = loaded.protocol(None)
    noise, chip_seed, begin = job[0].noise, job[0].chip_seed, times_of(stream, job[0].t_inference)[0]
    scenario = Scenario(name=noise, rpu_config=parse_preset(noise), t_inference=begin)
    analog: Any = protocol.analog(scenario.rpu_config)
    yield Note(name=f"conversion {job[0].model} {noise}", value=str(analog.conversion_report))
    tracking = {entry.label: entry for entry in stream.tracking}
    for measurement in job:
        with isolated_rng(derive_seed(chip_seed, "stream")), evaluation_mode(analog, protocol.model):
            protocol.program(analog, scenario, chip_seed)
            run = _Run(loaded, protocol, analog, measurement, tracking[measurement.method], stream)
            yield from run.records(images)


def times_of(stream: StreamSpec, t_inference: float) -> list[float]:
    """Return the time after programming in each window, in seconds."""
    if stream.drift is None:
        return [t_inference] * len(stream.ends)
    first, last = stream.drift
    steps = max(len(stream.ends) - 1, 1)
    return [first * math.exp(math.log(last / first) * window / steps) for window in range(len(stream.ends))]


class _Run:
    """One way of tracking, on one chip."""

    def __init__(
        self,
        loaded: LoadedModel,
        protocol: EvaluationProtocol,
        analog: nn.Module,
        measurement: Measurement,
        tracking: TrackingEntry,
        stream: StreamSpec,
    ) -> None:
        self.loaded, self.protocol, self.analog = loaded, protocol, analog
        self.measurement, self.tracking, self.stream = measurement, tracking, stream
        self.n_samples = 0
        self.seconds = 0.0

    def records(self, images: ImageSet) -> Iterator[Record]:
        """Yield a record per window."""
        times = times_of(self.stream, self.measurement.t_inference)
        for window, seconds in enumerate(times):
            begin = window * self.stream.window
            if window and seconds != times[window - 1]:
                drift_chip(self.analog, seconds)
            self._stand_at(begin)
            started, spent = time.perf_counter(), self.seconds
            hits = self._window(images, begin)
            calibrating = self.seconds - spent
            yield Record(
                scenario=self.measurement.noise,
                t_inference=self.measurement.t_inference,
                method=self.measurement.method,
                method_name=self.tracking.method,
                chip_seed=self.measurement.chip_seed,
                axes=self.measurement.axes(begin + self.stream.window),
                metrics={"accuracy": 100.0 * hits / self.stream.window},
                n_calibration_samples=self.n_samples,
                seconds_calibration=calibrating,
                seconds_evaluation=time.perf_counter() - started - calibrating,
            )

    def _stand_at(self, position: int) -> None:
        set_read_noise_seed(self.analog, derive_seed(self.measurement.chip_seed, "stream", position))
        set_samples_processed(self.analog, position)

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
            request = self.loaded.request(
                self.measurement.samples or 1,
                images=self.tracking.images or PLAIN,
                chip_seed=self.measurement.chip_seed,
            )
            batches = self.loaded.workload.calibration(request)
        report = self.protocol.calibrate_with(
            self.analog,
            self.measurement.chip_seed,
            self.tracking.method,
            batches,
            at_sample=position,
            **dict(self.tracking.options),
        )
        self.n_samples += report.n_samples
        self.seconds += report.seconds
        self._stand_at(position)


def _stream_images(test: ImageSet, seed: int, stream: StreamSpec) -> ImageSet:
    """Return the stream: all test images in a random order, then all again in another, and so on."""
    order = torch.Generator().manual_seed(derive_seed(seed, "stream"))
    rounds = -(-stream.images // len(test))
    numbers = torch.cat([torch.randperm(len(test), generator=order) for _ in range(rounds)])[: stream.images]
    numbers = numbers.to(test.labels.device)
    return replace(test, images=test.images[numbers], labels=test.labels[numbers])


def _digital(model: nn.Module, images: ImageSet, stream: StreamSpec) -> Iterator[tuple[int, dict[str, float]]]:
    for begin in range(0, stream.images, stream.window):
        hits = 0
        for start in range(begin, begin + stream.window, stream.batch):
            chunk = slice(start, start + stream.batch)
            with torch.inference_mode():
                hits += topk_hits(model(images.images[chunk]), images.labels[chunk], 1)
        yield begin + stream.window, {"accuracy": 100.0 * hits / stream.window}
