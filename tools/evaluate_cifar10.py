"""Evaluate a trained ResNet-20 on a CIFAR-10 subset: every calibration method, with plain and with augmented images.

Ten chips in eight noise settings, calibration on 256 training images, accuracy on all test images. Every measurement is
written to ``records.jsonl`` as it comes; ``--resume`` goes on from there.

Run: ``python tools/evaluate_cifar10.py --data-root ../shared/data``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.commands._evaluation import AUGMENTED, PLAIN, check_out, method_specs, show_result, split_names
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.cifar import crop_and_flip, load_cifar_subset, normalise
from aihwkit_nabn.data.classification import ImageSet, accuracy_on, image_batches
from aihwkit_nabn.data.resnet_cifar import load_resnet20
from aihwkit_nabn.errors import NabnError, UnknownNameError
from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Record, Scenario, evaluate
from aihwkit_nabn.evaluation.scenario import UNCALIBRATED
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.simulator import build_preset

FOLDER = "cifar10_subset"
IMAGES, WEIGHTS = "cifar10_subset.npz", "resnet20_cifar10.pth"
SETTINGS: dict[str, Callable[[], Scenario]] = {}


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


class RecordFile:
    """Measurements as JSON lines, kept as they come; the first line says what they were made with.

    Args:
        path: The file.
        setup: What must be the same for measurements to belong together.
        resume: Take in what is there; otherwise begin anew.

    Raises:
        NabnError: the file is of another set-up, or damaged.
    """

    def __init__(self, path: Path, setup: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.digital: dict[str, float] = {}
        self.settings: list[dict[str, Any]] = []
        self.records: list[Record] = []
        lines = path.read_text().splitlines() if resume and path.is_file() else []
        kept = [json.dumps({"setup": setup})]
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except ValueError as error:
                if number == len(lines) - 1:  # cut off in the middle of a write
                    break
                raise NabnError(f"{path} is damaged in line {number + 1}; run without --resume") from error
            if number == 0:
                _check_setup(path, entry.get("setup"), setup)
                continue
            self._take(entry)
            kept.append(line)
        path.write_text("".join(f"{line}\n" for line in kept))

    def _take(self, entry: dict[str, Any]) -> None:
        if "record" in entry:
            self.records.append(Record(**entry["record"]))
        if "settings" in entry:
            self.settings.append(entry["settings"])
            self.digital = entry["digital"]

    def add(self, **entry: Any) -> None:
        """Append an entry: ``record=...``, or ``settings=...`` with ``digital=...``."""
        self._take(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def done(self, scenario: str, chip_seed: int) -> set[str]:
        """Return the labels of the methods that were measured on a chip."""
        return {r.method for r in self.records if (r.scenario, r.chip_seed) == (scenario, chip_seed)}

    def describes(self, scenario: str) -> bool:
        """Return whether the settings of a scenario are there: they come after its first chip's measurements."""
        return any(scenario in settings["conversion"] for settings in self.settings)


def _check_setup(path: Path, old: object, new: dict[str, Any]) -> None:
    if not isinstance(old, dict):
        raise NabnError(f"{path} is no record file of this tool; run without --resume or with another --out")
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            raise NabnError(
                f"{path} was made with {key} = {old.get(key)!r}, not {new.get(key)!r}; "
                f"run with the same, or without --resume, or with another --out"
            )


def choose_scenarios(names: list[str]) -> list[Scenario]:
    """Return the scenarios of these settings, all of them for an empty list.

    Raises:
        UnknownNameError: there is no such setting.
    """
    for name in names:
        if name not in SETTINGS:
            raise UnknownNameError("setting", name, SETTINGS)
    return [SETTINGS[name]() for name in names or SETTINGS]


def choose_methods(names: list[str]) -> list[MethodSpec]:
    """Return the methods, those that need calibration images once with plain and once with augmented ones."""
    specs = []
    for spec in method_specs(names or ["all"]):
        if spec.method == UNCALIBRATED:
            specs.append(MethodSpec(UNCALIBRATED, label="uncalibrated"))
        elif CALIBRATION_METHODS.get(spec.method).needs_batches:
            for images in (PLAIN, AUGMENTED):
                specs.append(MethodSpec(spec.method, batches=images, label=f"{spec.method}, {images}"))
        else:
            specs.append(MethodSpec(spec.method, label=spec.method))
    return specs


def merge(
    file: RecordFile, scenarios: Iterable[Scenario], methods: Iterable[MethodSpec], chips: list[int]
) -> EvaluationResult:
    """Return what was asked for as one result, in the order asked for."""
    by_key = {(record.scenario, record.chip_seed, record.method): record for record in file.records}
    order = [(s.name, chip, str(m.label)) for s in scenarios for chip in chips for m in methods]
    described = {entry["name"]: entry for settings in file.settings for entry in settings["scenarios"]}
    converted = {name: text for settings in file.settings for name, text in settings["conversion"].items()}
    settings = file.settings[-1] | {
        "seed": chips[0],
        "chips": len(chips),
        "scenarios": [described[s.name] for s in scenarios],
        "conversion": {s.name: converted[s.name] for s in scenarios},
    }
    return EvaluationResult(records=[by_key[key] for key in order], digital=file.digital, settings=settings)


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


app = typer.Typer(name="evaluate_cifar10", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    data_root: Annotated[Path, typer.Option(help=f"Folder that holds {FOLDER}/.")],
    out: Annotated[Path, typer.Option(help="Folder for records, table, plot.")] = Path("nabn_results/cifar10"),
    chips: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip and of the choice of images.")] = 0,
    methods: Annotated[str, typer.Option(help="Separated by commas; default: every registered method.")] = "",
    settings: Annotated[str, typer.Option(help=f"Separated by commas; default: {','.join(SETTINGS)}.")] = "",
    samples: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 256,
    calibration_batch: Annotated[int, typer.Option(min=1, help="Calibration images per batch.")] = 64,
    test_batch: Annotated[int, typer.Option(min=1, help="Test images per batch.")] = 233,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run in --out stopped.")] = False,
) -> None:
    """Evaluate ResNet-20 on a CIFAR-10 subset with every calibration method, plain and augmented images."""
    scenarios, specs = choose_scenarios(split_names(settings)), choose_methods(split_names(methods))
    train, test = load_cifar_subset(data_root / FOLDER / IMAGES)
    model = load_resnet20(data_root / FOLDER / WEIGHTS).to(device)
    test = ImageSet(images=normalise(test.images), labels=test.labels).to(device)
    images = train.shuffled(derive_seed(seed, "calibration images")).first(samples).images
    augmented = crop_and_flip(images, seed=derive_seed(seed, "augmentation"))
    batches = {
        PLAIN: image_batches(normalise(images).to(device), calibration_batch),
        AUGMENTED: image_batches(normalise(augmented).to(device), calibration_batch),
    }
    eval_fn = remembering(accuracy_on(test, batch_size=test_batch), model)
    setup = {"seed": seed, "samples": len(images), "calibration_batch": calibration_batch, "test_batch": test_batch}
    setup["torch"] = torch.__version__
    file = RecordFile(check_out(out) / "records.jsonl", setup, resume=resume)

    console = Console()
    chip_seeds = [seed + index for index in range(chips)]
    jobs = [(scenario, chip) for scenario in scenarios for chip in chip_seeds]
    begin, worked = time.monotonic(), 0
    for number, (scenario, chip) in enumerate(jobs, start=1):
        done = file.done(scenario.name, chip)
        missing = [spec for spec in specs if spec.label not in done]
        if not missing and file.describes(scenario.name):
            continue
        result = evaluate(
            model,
            scenarios=[scenario],
            methods=[specs[0], *(spec for spec in missing if spec is not specs[0])],
            chips=1,
            seed=chip,
            calibration_batches=batches,
            eval_fn=eval_fn,
            progress=False,
            on_record=lambda record, done=done: None if record.method in done else file.add(record=asdict(record)),
        )
        file.add(settings=result.settings, digital=result.digital)
        worked += 1
        left = (time.monotonic() - begin) / worked * (len(jobs) - number) / 60
        scores = ", ".join(f"{r.method} {r.metrics['accuracy']:.1f}" for r in result.records)
        console.print(
            f"[{number}/{len(jobs)}, {left:.0f} min left] {scenario.name}, chip {chip}: {scores}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    show_result(console, merge(file, scenarios, specs, chip_seeds), out)


if __name__ == "__main__":
    sys.exit(run(app))
