"""`nabn place`: which layers to keep digital so that the loss stays within a bound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.commands import _options as opt


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="FILE.py:FUNCTION of your own, timm:NAME, torchvision:NAME, transformers:FOLDER, a config of "
            "mmdetection or mmseg, digits or cifar10.",
        ),
    ],
    checkpoint: opt.Checkpoint = None,
    loss: Annotated[
        float,
        typer.Option(
            help="Loss that is allowed, in the metric's unit as tables show it: 1 point of accuracy, 0.01 of mAP."
        ),
    ] = 1.0,
    noise: Annotated[str, typer.Option(help="Noise, e.g. pcm or gaussian:sigma=0.06.")] = "pcm",
    time: Annotated[str, typer.Option(help="Time after programming.")] = "1d",
    method: Annotated[
        str, typer.Option(help="Calibration method of every chip, with options: low_rank:budget=0.05.")
    ] = "low_rank",
    budgets: Annotated[
        str | None,
        typer.Option(
            help="low_rank, auto: shares of the multiplications that corrections may cost, separated by commas; "
            "default: 0,0.01,0.03,0.1, or the method's own if it is given."
        ),
    ] = None,
    search_chips: Annotated[int, typer.Option(min=1, help="Chips to search on.")] = 3,
    chips: Annotated[int, typer.Option(min=1, help="Other chips, to verify on.")] = 5,
    seed: opt.Seed = 0,
    data: opt.Data = None,
    batch_size: opt.BatchSize = None,
    calibration_images: opt.CalibrationImages = 256,
    search_images: Annotated[
        int, typer.Option(min=1, help="Labelled images of the train set to search on, not calibrated with.")
    ] = 1000,
    test_images: opt.TestImages = None,
    image_size: opt.ImageSize = None,
    ignore_index: opt.IgnoreIndex = None,
    crop_pct: opt.CropPct = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    interpolation: opt.Interpolation = None,
    model_arg: opt.ModelArg = None,
    exclude: opt.Exclude = None,
    take: opt.Take = None,
    loader_workers: opt.LoaderWorkers = None,
    device: opt.Device = None,
    cfg_options: opt.CfgOptions = None,
    extension: opt.Extension = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for placement.json, table and plot; default: nabn_results/TARGET.")
    ] = None,
    jobs: opt.Jobs = None,
    resume: opt.Resume = False,
) -> None:
    """Find the cheapest set of layers to keep digital so that the loss stays within a bound; verify it on new chips."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import (
        check_out,
        folder_name,
        numbers,
        parse_scenarios,
        say_written,
        split_names,
    )
    from aihwkit_nabn.commands._workload import describe, import_extensions, run_logged, workload_source
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.files import write_text
    from aihwkit_nabn.reporting.placement import placement_markdown, plot_placement, print_placement
    from aihwkit_nabn.studies.placement import PlacementStudy
    from aihwkit_nabn.workloads import CalibrationRequest

    imports = import_extensions(extension)
    specs = method_specs(split_names(method))
    if len(specs) > 2:  # doing nothing is always among them
        raise NabnError(f"--method must be one method, got {method!r}")
    folder = out or Path("nabn_results") / folder_name(target)
    source = workload_source(target, ctx.params, folder)
    study = PlacementStudy(
        source,
        scenario=parse_scenarios([noise], [time])[0],
        method=specs[-1],
        loss=loss,
        budgets=None if budgets is None else numbers("--budgets", budgets),
        search_chips=search_chips,
        chips=chips,
        seed=seed,
        search_images=search_images,
        request=CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size),
        exclude=tuple(exclude or ()),
        imports=imports,
    )
    console = Console()
    check_out(folder)
    describe(console, study.workload)
    setup = {
        "target": target,
        "noise": noise,
        "time": time,
        "method": method,
        "search_images": search_images,
        "max_samples": calibration_images,
        "limit": test_images,
        "data": data,
        "image_size": image_size,
        "batch_size": batch_size,
        "cfg_options": cfg_options,
        "seed": seed,
        "exclude": list(study.exclude),
    }
    log = run_logged(study, console, folder / "placement.jsonl", setup, ctx.params, study.plan.scenarios)
    result, placement = study.result(log.records), study.placement(log.records)
    print_placement(result, console)
    placement.to_json(folder / "placement.json")
    write_text(folder / "placement.md", placement_markdown(result))
    plot_placement(result, folder / "placement.png")
    say_written(console, folder, "placement.*")
