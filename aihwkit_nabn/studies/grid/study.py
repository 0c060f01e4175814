"""The study behind `nabn sweep`: models x noise x time x chips x image quality x methods x calibration images."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import PLAIN
from aihwkit_nabn.evaluation.plan import PlannedMethod, has_input_ranges
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.evaluation.settings import setup_of
from aihwkit_nabn.extension import contents_of
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.results import Record, RecordLog
from aihwkit_nabn.results.provenance import versions
from aihwkit_nabn.seeding import derive_seed, isolated_rng
from aihwkit_nabn.simulator import parse_preset
from aihwkit_nabn.studies._base import Note, Study
from aihwkit_nabn.studies.grid.jobs import (
    ChipJob,
    Measurement,
    all_measurements,
    chip_jobs,
    digital_record,
    takes_images,
)
from aihwkit_nabn.studies.grid.methods import MethodEntry
from aihwkit_nabn.studies.grid.models import ModelEntry
from aihwkit_nabn.studies.grid.spec import SweepSpec, parse_spec
from aihwkit_nabn.studies.grid.stream import measure_stream
from aihwkit_nabn.workloads import SOURCES, CalibrationRequest, LoadSettings, Workload, is_config
from aihwkit_nabn.workloads._base import LAUNCHERS

RECORDS = "records.jsonl"
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


class LoadedModel:
    """A model of a sweep with its workload, at each image quality."""

    def __init__(self, spec: SweepSpec, entry: ModelEntry, settings: LoadSettings) -> None:
        self.spec, self.entry = spec, entry
        self.workload = entry.load(settings)
        self.stream_digital: list[tuple[int, dict[str, float]]] | None = None
        self._at: dict[int | None, Workload] = {None: self.workload}
        self._protocols: dict[int | None, EvaluationProtocol] = {}

    def at(self, jpeg: int | None) -> Workload:
        """Return the workload on images compressed at this quality; None: as they are.

        Raises:
            NabnError: it cannot compress its images.
        """
        if jpeg not in self._at:
            if self.workload.compressed is None:
                raise NabnError(f"jpeg is not for {self.entry.name!r}, which cannot compress its images")
            self._at[jpeg] = self.workload.compressed(int(jpeg or 0))
        return self._at[jpeg]

    def protocol(self, jpeg: int | None) -> EvaluationProtocol:
        """Return the protocol by which the model is measured on images of this quality."""
        if jpeg not in self._protocols:
            workload = self.at(jpeg)
            images = workload.calibration(self.request(max(self.spec.samples), exact=False))
            self._protocols[jpeg] = workload.protocol(self.spec.seed, exclude=self.entry.exclude, range_batches=images)
        return self._protocols[jpeg]

    def request(self, n: int, source: str = SOURCES[0], **more: Any) -> CalibrationRequest:
        """Return a request for calibration images of this sweep's seed."""
        more = {"exact": True, **more}
        return CalibrationRequest(
            n=n, source=source, seed=self.spec.seed, batch_size=self.spec.calibration_batch, **more
        )


class GridStudy(Study):
    """The measurements of a sweep.

    Args:
        content: The sweep as its file has it.
        work_dir: Folder for logs.
        launcher: How several processes that work on one big model were started, see `LoadSettings`.

    Raises:
        NabnError: something in it is not allowed.
    """

    def __init__(self, content: Any, *, work_dir: Path | None = None, launcher: str = "none") -> None:
        self.work_dir, self.launcher = work_dir, launcher
        self.spec = parse_spec(content)
        self.imports = self.spec.imports

    def jobs(self, known: Mapping[str, Record]) -> list[ChipJob]:
        """Return what is left, chip by chip."""
        return chip_jobs(self.spec, known)

    def total(self, known: Mapping[str, Record]) -> int:
        """Return the number of records, those of digital models counted where they are there."""
        digital = sum(record.chip_seed is None for record in known.values())
        return digital + sum(len(each.keys(self.spec)) for each in all_measurements(self.spec))

    def place(self, job: ChipJob) -> str:
        """Return the model's name."""
        return job[0].model

    def load(self, place: str) -> LoadedModel:
        """Return a model by name."""
        entry = next(model for model in self.spec.models if model.name == place)
        logs = None if self.work_dir is None else self.work_dir / place
        settings = LoadSettings(
            seed=self.spec.seed,
            test_images=self.spec.test_images,
            batch_size=self.spec.test_batch,
            loader_workers=0,
            work_dir=logs,
            launcher=self.launcher,
        )
        return LoadedModel(self.spec, entry, settings)

    def measure(self, job: ChipJob, loaded: LoadedModel) -> Iterator[Record | Note]:
        """Measure on a chip, or along a stream on it."""
        try:
            with isolated_rng(derive_seed(self.spec.seed, "run")):
                yield from _measure(job, loaded) if self.spec.stream is None else measure_stream(job, loaded)
        except NabnError as error:
            raise NabnError(f"{job[0].chip}: {error}") from error

    def check(self) -> dict[str, Any]:
        """Load every model, look for its images and convert it, so that what is missing is known before the work.

        Returns:
            Facts about models and conversions, by the name of a note.

        Raises:
            NabnError: something is missing, damaged or cannot be converted.
        """
        notes: dict[str, Any] = {}
        for entry in self.spec.models:
            notes |= _checked(self.load(entry.name))
        return notes

    def rank(self) -> int:
        """Return which of a launcher's processes this is: each runs the study, and takes part in every job.

        Raises:
            NabnError: a model is no config, or the launcher has not started this process.
        """
        if self.launcher == LAUNCHERS[0]:
            return 0
        for model in self.spec.models:
            if not is_config(model.model):
                raise NabnError(
                    f"--launcher is for configs of mmdetection and mmsegmentation, which {model.name!r} is not"
                )
        found = next((os.environ[name] for name in _RANKS if name in os.environ), None)
        if found is None:
            raise NabnError(
                f"--launcher {self.launcher} is for processes that it has started: no rank is set in this one"
            )
        return int(found)

    def open_log(self, out: Path, rank: int = 0) -> RecordLog:
        """Return the log in a sweep's folder, begun or gone on with; it is read only where `rank` is not 0.

        Raises:
            NabnError: as for `RecordLog`.
        """
        log = RecordLog(out / RECORDS, described(self.spec), mend="use the same, or another --out", rank=rank)
        for source in self.imports:
            log.agree(f"contents of {source}", contents_of(source))
        return log


def described(spec: SweepSpec) -> dict[str, Any]:
    """Return the sweep as plain values with the versions that its records depend on."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec), default=str))
    if not plain["imports"]:
        del plain["imports"]  # as logs had it before there were any
    models = {noise: parse_preset(noise).noise_model for noise in spec.noise}
    # What the text of a setting does not say, since it names a file.
    read = {noise: str(model) for noise, model in models.items() if getattr(model, "reads_file", False)}
    if read:
        plain["noise_files"] = read
    return {**plain, "versions": versions("aihwkit", "torch", "numpy", "pillow")}


def _measure(job: ChipJob, loaded: LoadedModel) -> Iterator[Record | Note]:
    first = job[0]
    protocol = loaded.protocol(first.jpeg)
    entries = {entry.label: entry for entry in loaded.spec.methods}
    scenario = Scenario(name=first.noise, rpu_config=parse_preset(first.noise), t_inference=first.t_inference)
    protocol.keep_only(scenario.rpu_config)  # the next chip is likely to be of the same noise
    with evaluation_mode(protocol.model):
        analog: Any = protocol.analog(scenario.rpu_config)
        yield digital_record(first.model, first.jpeg, dict(protocol.digital))
        yield Note(name=f"conversion {first.model} {first.noise}", value=str(analog.conversion_report))
        protocol.program(analog, scenario, first.chip_seed)
        for measurement in job:
            method = _planned(loaded, measurement, entries[measurement.method])
            record, _ = protocol.record(analog, scenario, first.chip_seed, method)
            yield measurement.named(record)


def _planned(loaded: LoadedModel, measurement: Measurement, entry: MethodEntry) -> PlannedMethod:
    spec = MethodSpec(entry.method, label=entry.label, options=dict(entry.options))
    needs = spec.method in CALIBRATION_METHODS and CALIBRATION_METHODS.get(spec.method).needs_reference
    if not takes_images(entry):
        return PlannedMethod(spec=spec, batches=None, needs_reference=needs)
    request = loaded.request(
        measurement.samples or 1,
        measurement.calibration or SOURCES[0],
        images=entry.images or PLAIN,
        chip_seed=measurement.chip_seed,
        reference_skips=("CompressJPEG",) if entry.clean_reference else (),
    )
    return PlannedMethod(spec=spec, batches=loaded.at(measurement.jpeg).calibration(request), needs_reference=needs)


def _checked(loaded: LoadedModel) -> dict[str, Any]:
    spec, entry, workload = loaded.spec, loaded.entry, loaded.workload
    for source in spec.calibration:
        if source not in workload.sources:
            raise NabnError(
                f"calibration of {entry.name!r} must be one of {', '.join(workload.sources)}, got {source!r}"
            )
        for chip in spec.chip_seeds:
            workload.calibration(loaded.request(max(spec.samples), source, chip_seed=chip))
    for jpeg in spec.jpeg:
        loaded.at(jpeg)
    if spec.stream is not None and workload.test_set is None:
        raise NabnError(f"stream is for classifiers, which {entry.name!r} is not")
    available = workload.facts.get("test_images")
    if spec.test_images is not None and isinstance(available, int) and spec.test_images > available:
        raise NabnError(f"test_images must be at most {available} for {entry.name}, got {spec.test_images}")
    facts = {name: workload.facts.get(name) for name in ("test_images", "other_data")}
    notes: dict[str, Any] = {f"model {entry.name}": {**facts, "class": type(workload.model).__name__}}
    notes[f"network {entry.name}"] = setup_of(workload.model)["model"]
    notes |= {f"network {entry.name}, {name}": value for name, value in workload.facts.get("setup", {}).items()}
    for noise in spec.noise:
        config = parse_preset(noise)
        convert_to_noise_aware(workload.model, config, exclude=entry.exclude)  # what cannot be is known now
        if has_input_ranges(config):
            workload.calibration(loaded.request(max(spec.samples), exact=False))
    return notes
