"""`nabn sensitivity`: which layers hurt most, one layer at a time on the chip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aihwkit_nabn.commands import _options as opt

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.results import Results


def command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="[TARGET]",
            help="FILE.py:FUNCTION of your own, timm:NAME, torchvision:NAME, transformers:FOLDER, a config of "
            "mmdetection or mmseg; "
            "default: the embedded digits.",
        ),
    ] = "digits",
    checkpoint: opt.Checkpoint = None,
    noise: opt.Noise = ["gaussian:sigma=0.1"],  # noqa: B006
    time: opt.Time = ["1d"],  # noqa: B006
    methods: opt.Methods = "none,paired",
    chips: opt.Chips = 5,
    seed: opt.Seed = 0,
    reverse: Annotated[bool, typer.Option("--reverse", help="Also all layers but one on the chip.")] = False,
    data: opt.Data = None,
    batch_size: opt.BatchSize = None,
    calibration_images: opt.CalibrationImages = 128,
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
        Path | None, typer.Option(help="Folder for sensitivity.json, table and plot; default: nabn_results/TARGET.")
    ] = None,
    jobs: opt.Jobs = None,
    resume: opt.Resume = False,
) -> None:
    """Measure what each layer costs when it alone is on the chip: which ones to keep digital or to improve."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, folder_name, parse_scenarios, split_names
    from aihwkit_nabn.commands._workload import describe, import_extensions, run_logged, workload_source
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.studies.layers import LayersStudy
    from aihwkit_nabn.workloads import CalibrationRequest

    imports = import_extensions(extension)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    folder = out or Path("nabn_results") / folder_name(target)
    source = workload_source(target, ctx.params, folder)
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
    setup |= {"limit": test_images, "max_samples": calibration_images, "exclude": list(study.exclude)}
    setup |= {"network": None if target == "digits" else target, "weights": checkpoint, "data": data}
    setup |= {"batch_size": batch_size, "image_size": image_size, "cfg_options": cfg_options, "take": take}
    if ignore_index is not None:
        setup |= {"ignore_index": ignore_index}
    log = run_logged(study, console, folder / "sensitivity.jsonl", setup, ctx.params, study.plan.scenarios)
    _show(console, study.result(log.records), folder)


def _show(console: Console, result: Results, folder: Path) -> None:
    """Print the tables, write ``sensitivity.json``, ``sensitivity.md`` and a plot, and say where they are."""
    from aihwkit_nabn.commands._evaluation import say_written
    from aihwkit_nabn.files import write_text
    from aihwkit_nabn.reporting.sensitivity import plot_sensitivity, print_sensitivity, sensitivity_markdown

    print_sensitivity(result, console)
    result.to_json(folder / "sensitivity.json")
    write_text(folder / "sensitivity.md", sensitivity_markdown(result))
    plot_sensitivity(result, folder / "sensitivity.png")
    say_written(console, folder, "sensitivity.*")
