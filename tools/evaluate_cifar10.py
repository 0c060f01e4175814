"""Evaluate a trained ResNet-20 on a CIFAR-10 subset: every calibration method, with plain and with augmented images.

Ten chips in eight noise settings, calibration on 256 training images, accuracy on all test images. Every measurement is
written to ``records.jsonl`` as it comes; ``--resume`` goes on from there.

Run: ``python tools/evaluate_cifar10.py --data-root ../shared/data``
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._evaluation import check_out, show_result, split_names
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.cifar import crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet, accuracy_on, image_batches
from aihwkit_nabn.data.resnet_cifar import load_resnet20
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario, evaluate
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN, method_specs
from aihwkit_nabn.results import DIGITAL, UNCALIBRATED, Record, RecordLog
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.simulator import build_preset, parse_preset

FOLDER = "cifar10_subset"
IMAGES, WEIGHTS = "cifar10_subset.npz", "resnet20_cifar10.pth"
SETTINGS: dict[str, Callable[[], Scenario]] = {}
Job = tuple[Scenario, int, list[MethodSpec]]  # a noise setting, a chip's seed, what to measure on it


def _gaussian(key: str, kind: str, sigma: float, relative_to: str) -> None:
    def build() -> Scenario:
        config = build_preset("gaussian", sigma=sigma, relative_to=relative_to)
        return Scenario(name=f"{kind} {sigma:.2f}", rpu_config=config, group=f"{kind} noise", strength=sigma)

    SETTINGS[key] = build


def _pcm(key: str, t_inference: str, text: str) -> None:
    def build() -> Scenario:
        return Scenario(name=f"PCM, {text}", rpu_config=build_preset("pcm"), t_inference=t_inference, group="PCM")

    SETTINGS[key] = build


for _sigma in (0.02, 0.06, 0.10):
    _gaussian(f"additive-{_sigma:.2f}", "additive", _sigma, "max")
for _sigma in (0.1, 0.3):
    _gaussian(f"multiplicative-{_sigma:.1f}", "multiplicative", _sigma, "weight")
for _time, _text in (("1h", "1 hour"), ("1d", "1 day"), ("1y", "1 year")):
    _pcm(f"pcm-{_time}", _time, _text)


DEFAULT = tuple(SETTINGS)


def _preset(key: str, preset: str, t_inference: str = "0s") -> None:
    def build() -> Scenario:
        return Scenario(name=key, rpu_config=parse_preset(preset), t_inference=t_inference, group=key)

    SETTINGS[key] = build


_preset("hermes-1d", "hermes", "1d")
_preset("reram-wan-1d", "reram_wan", "1d")
_preset("reram-cmo-1d", "reram_cmo", "1d")
_preset("stuck", "stuck")
_preset("thermal", "thermal")
_preset("temperature", "temperature")
_preset("reference-current", "reference_current")
_preset("variational", "variational")
_preset("read-noise", "gaussian:sigma=0,w_noise=0.0175")
_preset("8-bit", "gaussian:sigma=0,inp_bits=8,out_bits=8,out_noise=0.04")
_preset("crossbar-1d", "crossbar", "1d")
_preset("crossbar-1y", "crossbar", "1y")
_preset("pcm+stuck-1d", "pcm+stuck", "1d")
PRESETS = ("additive-0.06", "multiplicative-0.3", "pcm-1d", *(key for key in SETTINGS if key not in DEFAULT))


def choose_scenarios(names: list[str]) -> list[Scenario]:
    """Return the scenarios of these settings; ``presets`` stands for one of every preset.

    Raises:
        UnknownNameError: there is no such setting.
    """
    for name in names:
        if name not in (*SETTINGS, "presets"):
            raise UnknownNameError("setting", name, [*SETTINGS, "presets"])
    keys = [key for name in names or DEFAULT for key in (PRESETS if name == "presets" else (name,))]
    return [SETTINGS[key]() for key in dict.fromkeys(keys)]


def choose_methods(names: list[str]) -> list[MethodSpec]:
    """Return the methods, those that need calibration images once with plain and once with augmented ones."""
    specs = []
    for spec in method_specs(names or ["all"]):
        label = spec.label or spec.method
        if spec.method == UNCALIBRATED:
            specs.append(replace(spec, label="uncalibrated"))
        elif CALIBRATION_METHODS.get(spec.method).needs_batches:
            for images in (PLAIN, AUGMENTED):
                specs.append(replace(spec, batches=images, label=f"{label}, {images}"))
        else:
            specs.append(replace(spec, label=label))
    return specs


def merge(
    file: RecordLog, scenarios: Iterable[Scenario], methods: Iterable[MethodSpec], chips: list[int]
) -> EvaluationResult:
    """Return what was asked for as one result, in the order asked for."""
    by_key = {(record.scenario, record.chip_seed, record.method): record for record in file.records.values()}
    order = [(s.name, chip, str(m.label)) for s in scenarios for chip in chips for m in methods]
    each = [file.notes[f"settings {s.name}"] for s in scenarios]
    described = {entry["name"]: entry for settings in each for entry in settings["scenarios"]}
    converted = {name: text for settings in each for name, text in settings["conversion"].items()}
    shifts = {s.name: {m.label: file.notes.get(f"shifts {s.name} | {m.label}") for m in methods} for s in scenarios}
    settings = each[-1] | {
        "seed": chips[0],
        "chips": len(chips),
        "scenarios": [described[s.name] for s in scenarios],
        "conversion": {s.name: converted[s.name] for s in scenarios},
        "layer_shifts": {name: {k: v for k, v in found.items() if v is not None} for name, found in shifts.items()},
    }
    return EvaluationResult(records=[by_key[key] for key in order], digital=file.notes[DIGITAL], settings=settings)


def remembering(
    eval_fn: Callable[[nn.Module], dict[str, float]], model: nn.Module
) -> Callable[[nn.Module], dict[str, float]]:
    """Return `eval_fn` that measures `model` itself only once."""
    known: dict[str, float] = {}

    def measured(candidate: nn.Module) -> dict[str, float]:
        if candidate is not model:
            return eval_fn(candidate)
        if not known:
            known.update(eval_fn(candidate))
        return dict(known)

    return measured


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured, apart from noise and methods; sent to worker processes, each of which loads it once."""

    data_root: Path
    seed: int
    samples: int
    calibration_batch: int
    test_batch: int
    device: str

    @functools.cached_property
    def parts(self) -> tuple[nn.Module, dict[str, list[Tensor]], Callable[[nn.Module], dict[str, float]]]:
        """The model, the calibration sets, and the ``eval_fn``."""
        train, test = load_cifar_subset(self.data_root / FOLDER / IMAGES)
        model = load_resnet20(self.data_root / FOLDER / WEIGHTS).to(self.device)
        test = ImageSet(images=normalise(test.images), labels=test.labels).to(self.device)
        images = train.shuffled(derive_seed(self.seed, "calibration images")).first(self.samples).images
        sets = {PLAIN: images, AUGMENTED: crop_and_flip(images, seed=derive_seed(self.seed, "augmentation"))}
        batches = {
            name: image_batches(normalise(each).to(self.device), self.calibration_batch) for name, each in sets.items()
        }
        return model, batches, remembering(accuracy_on(test, batch_size=self.test_batch), model)

    def measure(
        self,
        scenario: Scenario,
        chip: int,
        specs: list[MethodSpec],
        on_record: Callable[[Record], object] | None = None,
    ) -> EvaluationResult:
        """Measure methods on one chip."""
        model, batches, eval_fn = self.parts
        return evaluate(
            model,
            scenarios=[scenario],
            methods=specs,
            chips=1,
            seed=chip,
            calibration_batches=batches,
            eval_fn=eval_fn,
            progress=False,
            on_record=on_record,
        )


_bench: Bench | None = None  # of a worker process


def _start_worker(bench: Bench, threads: int) -> None:
    global _bench
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _bench = bench


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: the pool's own workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure_in_worker(scenario: Scenario, chip: int, specs: list[MethodSpec]) -> EvaluationResult:
    if _bench is None:
        raise RuntimeError("a worker process was not started with _start_worker")
    return _bench.measure(scenario, chip, specs)


def keep(file: RecordLog, result: EvaluationResult) -> None:
    """Keep what a result of one scenario says beside its records; of layers' shifts the first chip's."""
    file.note(DIGITAL, result.digital)
    for scenario, methods in result.settings["layer_shifts"].items():
        for label, shifts in methods.items():
            file.note(f"shifts {scenario} | {label}", shifts)
    for scenario in result.scenarios:
        file.note(f"settings {scenario}", result.settings)


def measure_all(bench: Bench, jobs: list[Job], file: RecordLog, workers: int) -> Iterator[tuple[Job, EvaluationResult]]:
    """Do the jobs, keeping every record, and give each job's result when it is there."""
    if workers == 1:
        for scenario, chip, specs in jobs:
            result = bench.measure(scenario, chip, specs, file.add)
            keep(file, result)
            yield (scenario, chip, specs), result
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Spawned, not forked: a fork of a process in which torch has computed can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(replace(bench), threads)) as pool:
        waiting = {pool.submit(_measure_in_worker, *job): job for job in jobs}
        try:
            for future in as_completed(waiting):
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise NabnError(
                        "a worker process was killed (memory?); what was measured is kept: --resume"
                    ) from error
                for record in result.records:
                    file.add(record)
                keep(file, result)
                yield waiting[future], result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


app = typer.Typer(name="evaluate_cifar10", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data_root: Annotated[Path, typer.Option(help=f"Folder that holds {FOLDER}/.")],
    out: Annotated[Path, typer.Option(help="Folder for records, table, plot.")] = Path("nabn_results/cifar10"),
    chips: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip and of the choice of images.")] = 0,
    methods: Annotated[str, typer.Option(help="Separated by commas; default: every registered method.")] = "",
    settings: Annotated[
        str, typer.Option(help=f"Separated by commas; default: {','.join(DEFAULT)}. Also: presets.")
    ] = "",
    samples: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 256,
    calibration_batch: Annotated[int, typer.Option(min=1, help="Calibration images per batch.")] = 64,
    test_batch: Annotated[int, typer.Option(min=1, help="Test images per batch.")] = 233,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Processes; more than one keep records chip by chip.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Evaluate ResNet-20 on a CIFAR-10 subset with every calibration method, plain and augmented images."""
    scenarios, specs = choose_scenarios(split_names(settings)), choose_methods(split_names(methods))
    bench = Bench(
        data_root=data_root,
        seed=seed,
        samples=samples,
        calibration_batch=calibration_batch,
        test_batch=test_batch,
        device=device,
    )
    _ = bench.parts  # missing data is found before anything is written
    setup = {name: value for name, value in vars(bench).items() if isinstance(value, int)}
    file = RecordLog(check_out(out) / "records.jsonl", setup | {"torch": str(torch.__version__)}, resume=resume)
    console = Console()
    chip_seeds = [seed + index for index in range(chips)]
    jobs: list[Job] = []
    for scenario in scenarios:
        for chip in chip_seeds:
            done = file.done(scenario.name, chip)
            missing = [spec for spec in specs if spec.label not in done]
            if missing or f"settings {scenario.name}" not in file.notes:
                jobs.append((scenario, chip, [specs[0], *(spec for spec in missing if spec is not specs[0])]))
    begin = time.monotonic()
    for number, ((scenario, chip, _specs), result) in enumerate(measure_all(bench, jobs, file, workers), start=1):
        left = (time.monotonic() - begin) / number * (len(jobs) - number) / 60
        scores = ", ".join(f"{record.method} {record.metrics['accuracy']:.1f}" for record in result.records)
        console.print(
            f"[{number}/{len(jobs)}, {left:.0f} min left] {scenario.name}, chip {chip}: {scores}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    show_result(console, merge(file, scenarios, specs, chip_seeds), out)


if __name__ == "__main__":
    sys.exit(run(app))
