"""`nabn test`: a trained model on simulated chips, with and without calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    LoaderWorkers,
    Noise,
    Seed,
    Take,
    TestImages,
)

RECORDS = "records.jsonl"


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="torchvision:NAME, a config file, mmdet::FILE, mmseg::FILE, digits or cifar10.",
        ),
    ],
    noise: Noise,
    checkpoint: Checkpoint = None,
    overrides: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    time: Annotated[list[str], typer.Option(help="Time after programming: 1s, 1h, 1d, 1y; can be repeated.")] = ["1d"],  # noqa: B006
    chips: Chips = 5,
    methods: Annotated[
        str,
        typer.Option(help="Calibration methods, by commas, with options if need be: paired,distill:steps=20; or all."),
    ] = "none,population,auto",
    calibration_images: CalibrationImages = 256,
    test_images: TestImages = None,
    data: Data = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    ignore_index: IgnoreIndex = None,
    exclude: Exclude = None,
    extension: Extension = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, plots and numbers; default: nabn_results/TARGET.")
    ] = None,
    take: Take = None,
    loader_workers: LoaderWorkers = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has measured.")] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Detectors and segmenters: measure every class too.")
    ] = False,
    examples: Annotated[
        int,
        typer.Option(
            min=0, help="Detectors and segmenters: test images to draw, digital, on the chip, and calibrated."
        ),
    ] = 0,
    cfg_options: CfgOptions = None,
    launcher: Annotated[str, typer.Option(help="Configs: none, pytorch, slurm or mpi, as upstream has them.")] = "none",
) -> None:
    """Put a trained model on simulated analog chips and measure what calibration brings back."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, folder_name, parse_scenarios, show_result, split_names
    from aihwkit_nabn.commands._workload import cfg_option_items, describe, import_extensions, workload_source
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.evaluation import evaluate
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.workloads import CalibrationRequest

    import_extensions(extension)
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
        "per_class": per_class,
        "cfg_options": cfg_option_items(cfg_options, overrides),
    }
    source = workload_source(
        target,
        folder,
        own,
        seed=seed,
        test_images=test_images,
        batch_size=batch_size,
        loader_workers=loader_workers,
        launcher=launcher,
    )
    workload = source.load()
    check_out(folder)
    if examples and workload.write_examples is None:
        raise NabnError("--examples is for detectors and segmenters")
    console = Console()
    describe(console, workload)
    request = CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size)
    arguments = workload.arguments(scenarios, specs, request, chips=chips) | {"exclude": tuple(exclude or ())}
    # As logs of version 0.1 have it: what decides about network and images.
    setup = setup_of(
        workload.model,
        target=target,
        data=data,
        limit=test_images,
        image_size=image_size,
        batch_size=batch_size,
        max_samples=calibration_images,
        seed=seed,
        exclude=exclude or [],
        **workload.facts.get("setup", {}),
        **({"per_class": True} if per_class else {}),
    )
    log = RecordLog(folder / RECORDS, setup, resume=resume, rank=workload.rank, broadcast=workload.broadcast)
    with log:
        result = evaluate(workload.model, record_file=log, **arguments)
    if workload.rank != 0:
        return
    if examples and workload.write_examples is not None:
        workload.write_examples(result, arguments, examples, folder / "examples")
    conversion = next(iter(result.settings["conversion"].values()))
    console.print(f"On tiles: {conversion}", highlight=False, soft_wrap=True, markup=False)
    show_result(console, result, folder)
