"""`nabn test`: a trained model on simulated chips, with and without calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.commands import _options as opt

RECORDS = "records.jsonl"


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION of your own, timm:NAME, torchvision:NAME, "
            "transformers:FOLDER, a config file, mmdet::FILE, mmseg::FILE, digits or cifar10.",
        ),
    ],
    noise: opt.Noise,
    checkpoint: opt.Checkpoint = None,
    overrides: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    time: opt.Time = ["1d"],  # noqa: B006
    chips: opt.Chips = 5,
    methods: opt.Methods = "none,population,auto",
    calibration_images: opt.CalibrationImages = 256,
    test_images: opt.TestImages = None,
    data: opt.Data = None,
    batch_size: opt.BatchSize = None,
    image_size: opt.ImageSize = None,
    ignore_index: opt.IgnoreIndex = None,
    crop_pct: opt.CropPct = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    model_arg: opt.ModelArg = None,
    exclude: opt.Exclude = None,
    placement: opt.Placement = None,
    extension: opt.Extension = None,
    seed: opt.Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, plots and numbers; default: nabn_results/TARGET.")
    ] = None,
    take: opt.Take = None,
    loader_workers: opt.LoaderWorkers = None,
    device: opt.Device = None,
    resume: opt.Resume = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Detectors and segmenters: also measure each class.")
    ] = False,
    examples: Annotated[
        int,
        typer.Option(
            min=0, help="Detectors and segmenters: number of test images to draw: digital, on the chip, calibrated."
        ),
    ] = 0,
    cfg_options: opt.CfgOptions = None,
    launcher: Annotated[str, typer.Option(help="Configs: none, pytorch, slurm or mpi, as upstream has them.")] = "none",
) -> None:
    """Put a trained model on simulated analog chips and measure what calibration recovers."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import (
        check_out,
        folder_name,
        parse_scenarios,
        show_result,
        split_names,
        without_impossible,
    )
    from aihwkit_nabn.commands._placement import digital_names, say_made_with
    from aihwkit_nabn.commands._workload import describe, import_extensions, open_log, workload_source
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.evaluation import evaluate
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.workloads import CalibrationRequest

    import_extensions(extension)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    digital = digital_names(exclude, placement)
    folder = out or Path("nabn_results") / folder_name(target)
    source = workload_source(target, ctx.params, folder)
    workload = source.load()
    check_out(folder)
    if examples and workload.write_examples is None:
        raise NabnError("--examples is for detectors and segmenters")
    console = Console()
    describe(console, workload)
    default = getattr(ctx.get_parameter_source("methods"), "name", "") == "DEFAULT"
    specs = without_impossible(console, specs, workload, None if default else methods)
    if placement is not None and workload.rank == 0:
        say_made_with(console, placement, workload.model, specs, [scenario.name for scenario in scenarios])
    request = CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size)
    arguments = workload.arguments(scenarios, specs, request, chips=chips) | {"exclude": digital}
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
        exclude=list(digital),
        **workload.facts.get("setup", {}),
        **({"per_class": True} if per_class else {}),
    )
    ranks = {"rank": workload.rank, "broadcast": workload.broadcast}
    with open_log(folder / RECORDS, setup, ctx.params, **ranks) as log:
        result = evaluate(workload.model, record_file=log, **arguments)
    if workload.rank != 0:
        return
    if examples and workload.write_examples is not None:
        workload.write_examples(result, arguments, examples, folder / "examples")
    conversions: dict[str, list[str]] = {}
    for scenario, text in result.settings["conversion"].items():
        conversions.setdefault(text, []).append(scenario)
    for text, names in conversions.items():
        where = f" ({'; '.join(names)})" if len(conversions) > 1 else ""
        console.print(f"On tiles{where}: {text}", highlight=False, soft_wrap=True, markup=False)
    show_result(console, result, folder)
