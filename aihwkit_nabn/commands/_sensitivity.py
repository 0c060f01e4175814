"""What `nabn sensitivity` does for each kind of target, and how it shows what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.files import write_text

if TYPE_CHECKING:
    from mmengine.config import Config
    from rich.console import Console

    from aihwkit_nabn.evaluation import MethodSpec, Scenario
    from aihwkit_nabn.results import Record, Results
    from aihwkit_nabn.targets import TargetOptions


@dataclass(frozen=True, kw_only=True)
class Study:
    """What every kind of target has in common; see `measure_sensitivity`."""

    scenarios: Sequence[Scenario]
    methods: Sequence[MethodSpec]
    chips: int
    seed: int
    max_samples: int
    reverse: bool
    exclude: Sequence[str]


def digits_arguments(study: Study, *, limit: int | None) -> dict[str, Any]:
    """Return model, measurement and calibration images of the embedded digits."""
    from aihwkit_nabn.data.classification import accuracy_on, image_batches
    from aihwkit_nabn.data.digits import load_demo_model, load_digits, shift_images
    from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN
    from aihwkit_nabn.seeding import derive_seed

    test = load_digits("test")
    images = load_digits("train").shuffled(study.seed).first(study.max_samples).images
    return {
        "model": load_demo_model(),
        "eval_fn": accuracy_on(test.first(min(limit or len(test), len(test))), batch_size=150),
        "calibration_batches": {
            PLAIN: image_batches(images, 64),
            AUGMENTED: image_batches(shift_images(images, seed=derive_seed(study.seed, "shift")), 64),
        },
    }


def torchvision_arguments(target: str, options: TargetOptions, console: Console) -> dict[str, Any]:
    """Return model, measurement and calibration images of a ``KIND:NAME`` target; say what it is."""
    from aihwkit_nabn.targets import load_target

    task = load_target(target, options)
    for line in task.description:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return {
        "model": task.model,
        "eval_fn": task.eval_fn,
        "calibration_batches": task.calibration_batches,
        "forward_fn": task.forward_fn,
    }


def openmmlab_arguments(
    study: Study,
    config: Config,
    checkpoint: str,
    *,
    noises: Sequence[str],
    times: Sequence[str],
    limit: int | None,
    batch_size: int | None,
    workers: int | None,
    take: str | None,
    work_dir: Path,
) -> dict[str, Any]:
    """Return model, measurement and calibration images of a config, from the loop that `nabn test` runs."""
    from aihwkit_nabn.commands._evaluation import loop_methods
    from aihwkit_nabn.commands._openmmlab import measured_by_config
    from aihwkit_nabn.openmmlab.run import TestRun

    run = TestRun(
        checkpoint=checkpoint,
        noises=noises,
        times=times,
        methods=loop_methods(study.methods),
        chips=study.chips,
        seed=study.seed,
        max_samples=study.max_samples,
        batch_size=batch_size,
        exclude=study.exclude,
        workers=workers,
        take=take,
        work_dir=str(work_dir),
    )
    arguments = measured_by_config(config, run, limit=limit)
    return {name: arguments[name] for name in ("model", "eval_fn", "calibration_batches", "forward_fn")}


def run_study(
    study: Study, arguments: Mapping[str, Any], path: Path, setup: dict[str, Any], *, resume: bool
) -> Results:
    """Measure, keeping every record in a log as it comes, with its progress on the error stream.

    Raises:
        NabnError: the log is of another set-up, or damaged.
    """
    from aihwkit_nabn.evaluation.sensitivity import measure_sensitivity
    from aihwkit_nabn.progress import Meter
    from aihwkit_nabn.results import RecordLog

    with RecordLog(path, setup, resume=resume) as log, Meter() as meter:
        known = list(log.records.values())
        meter.show("digital")

        def on_record(record: Record, number: int, total: int) -> None:
            log.add(record)
            meter.show(f"{record.axis('layer')}, chip {record.chip_seed}")
            meter.update(number, total, before=len(known))

        return measure_sensitivity(
            scenarios=study.scenarios,
            methods=study.methods,
            chips=study.chips,
            seed=study.seed,
            max_samples=study.max_samples,
            exclude=study.exclude,
            reverse=study.reverse,
            known=known,
            on_record=on_record,
            **arguments,
        )


def show_sensitivity(console: Console, result: Results, folder: Path) -> None:
    """Print the tables, write ``sensitivity.json``, ``sensitivity.md`` and a plot, and say where they are."""
    from aihwkit_nabn.reporting.sensitivity import plot_sensitivity, print_sensitivity, sensitivity_markdown

    print_sensitivity(result, console)
    result.to_json(folder / "sensitivity.json")
    write_text(folder / "sensitivity.md", sensitivity_markdown(result))
    plot_sensitivity(result, folder / "sensitivity.png")
    console.print(
        f"Written to {folder}/: sensitivity.json, sensitivity.md, sensitivity.png",
        style="bold",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
