"""`nabn sensitivity`: which layers hurt most, one layer at a time on the chip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aihwkit_nabn.commands._options import (
    BatchSize,
    CalibrationImages,
    CfgOptions,
    Checkpoint,
    Chips,
    Data,
    Device,
    Exclude,
    Extension,
    IgnoreIndex,
    ImageSize,
    Jobs,
    LoaderWorkers,
    Noise,
    Seed,
    Take,
    TestImages,
)

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.results import Results


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[TARGET]",
            help="torchvision:NAME, a config of mmdetection or mmsegmentation; default: the embedded digits.",
        ),
    ] = "digits",
    checkpoint: Checkpoint = None,
    noise: Noise = [  # noqa: B006
        "gaussian:sigma=0.1"
    ],
    time: Annotated[list[str], typer.Option(help="Time after programming; can be repeated.")] = ["1d"],  # noqa: B006
    methods: Annotated[str, typer.Option(help="Calibration methods, separated by commas.")] = "none,paired",
    chips: Chips = 5,
    seed: Seed = 0,
    reverse: Annotated[bool, typer.Option("--reverse", help="Also all layers on the chip but one.")] = False,
    data: Data = None,
    batch_size: BatchSize = None,
    calibration_images: CalibrationImages = 128,
    test_images: TestImages = None,
    image_size: ImageSize = None,
    ignore_index: IgnoreIndex = None,
    exclude: Exclude = None,
    take: Take = None,
    loader_workers: LoaderWorkers = None,
    device: Device = None,
    cfg_options: CfgOptions = None,
    extension: Extension = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sensitivity.json, table and plot; default: nabn_results/TARGET.")
    ] = None,
    jobs: Jobs = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has measured.")] = False,
) -> None:
    """Measure what each layer costs alone on the chip, the others digital: which ones to keep digital, or to mend."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, folder_name, parse_scenarios, split_names
    from aihwkit_nabn.commands._workload import describe, import_extensions, progress_on, workload_source
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.studies import run_study
    from aihwkit_nabn.studies.layers import LayersStudy
    from aihwkit_nabn.workloads import CalibrationRequest

    imports = import_extensions(extension)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    folder = out or Path("nabn_results") / folder_name(target)
    own = {
        "checkpoint": checkpoint,
        "data": data,
        "image_size": image_size,
        "ignore_index": ignore_index,
        "take": take,
        "device": device,
        "cfg_options": cfg_options,
    }
    source = workload_source(
        target,
        folder,
        own,
        seed=seed,
        test_images=test_images,
        batch_size=batch_size,
        loader_workers=loader_workers,
    )
    study = LayersStudy(
        source,
        scenarios=scenarios,
        methods=specs,
        chips=chips,
        seed=seed,
        request=CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size),
        exclude=tuple(exclude or ()),
        reverse=reverse,
        imports=imports,
    )
    console = Console()
    check_out(folder)
    describe(console, study.workload)
    # As logs of version 0.1 have it; a reverse study measures the same and more.
    setup = {"target": folder_name(target), "noise": noise, "time": time, "methods": methods, "seed": seed}
    setup |= {"limit": test_images, "max_samples": calibration_images, "exclude": list(exclude or ())}
    setup |= {
        "network": None if target == "digits" else target,
        "weights": checkpoint,
        "data": data,
    }
    setup |= {"batch_size": batch_size, "image_size": image_size, "cfg_options": cfg_options, "take": take}
    if ignore_index is not None:
        setup |= {"ignore_index": ignore_index}
    with RecordLog(folder / "sensitivity.jsonl", setup, resume=resume) as log, progress_on(console) as shown:
        log.agree("network", setup_of(study.workload.model)["model"])
        run_study(study, log, workers=jobs, **shown)
        result = study.result(log.records)
    _show(console, result, folder)


def _show(console: Console, result: Results, folder: Path) -> None:
    """Print the tables, write ``sensitivity.json``, ``sensitivity.md`` and a plot, and say where they are."""
    from aihwkit_nabn.commands._evaluation import say_written
    from aihwkit_nabn.files import write_text
    from aihwkit_nabn.reporting.sensitivity import plot_sensitivity, print_sensitivity, sensitivity_markdown

    print_sensitivity(result, console)
    result.to_json(folder / "sensitivity.json")
    write_text(folder / "sensitivity.md", sensitivity_markdown(result))
    plot_sensitivity(result, folder / "sensitivity.png")
    say_written(console, folder, ["sensitivity.json", "sensitivity.md", "sensitivity.png"])
