"""`nabn test`: a trained model on simulated chips, with and without calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RECORDS = "records.jsonl"


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="torchvision:NAME, a config file, mmdet::FILE, mmseg::FILE, digits or cifar10.",
        ),
    ],
    noise: Annotated[
        list[str],
        typer.Option(help="Noise, e.g. pcm, gaussian:sigma=0.06 or pcm+stuck:p_off=0.01; can be repeated."),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Argument(metavar="CHECKPOINT", help="File (.pth, .pt, .safetensors); torchvision: or random."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    time: Annotated[list[str], typer.Option(help="Time after programming: 1s, 1h, 1d, 1y; can be repeated.")] = ["1d"],  # noqa: B006
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    methods: Annotated[
        str,
        typer.Option(help="Calibration methods, by commas, with options if need be: paired,distill:steps=20; or all."),
    ] = "none,population,auto",
    calibration_images: Annotated[int, typer.Option(min=1, help="Unlabelled images, from the train set.")] = 256,
    test_images: Annotated[int | None, typer.Option(min=1, help="Images that are measured on; default: all.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="torchvision: folder with train/CLASS/images and val/CLASS/images.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="torchvision: edge of the images in pixels.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Name of a module that stays digital; * and ? match; can be repeated.")
    ] = None,
    extension: Annotated[
        list[str] | None,
        typer.Option("--import", help="Python file or module with noise models or methods of yours; can be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, and of the choice of images.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, plots and numbers; default: nabn_results/TARGET.")
    ] = None,
    take: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of several weights in CHECKPOINT: model, ema, or their place in the file."),
    ] = None,
    loader_workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
    device: Annotated[str | None, typer.Option(help="torchvision: cpu (the default) or cuda.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has measured.")] = False,
    per_class: Annotated[bool, typer.Option("--per-class", help="Configs: measure every class too.")] = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Configs: test images to draw, digital, on the chip, and calibrated.")
    ] = 0,
    cfg_options: Annotated[
        list[str] | None, typer.Option(help="Configs: KEY=VALUE pairs that change it, as upstream has them.")
    ] = None,
    launcher: Annotated[str, typer.Option(help="Configs: none, pytorch, slurm or mpi, as upstream has them.")] = "none",
) -> None:
    """Put a trained model on simulated analog chips and measure what calibration brings back."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, folder_name, parse_scenarios, show_result, split_names
    from aihwkit_nabn.commands._workload import cfg_option_items, describe, import_extensions, workload_source
    from aihwkit_nabn.errors import NabnError
    from aihwkit_nabn.evaluation import evaluate
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.evaluation.plan import has_input_ranges
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings

    import_extensions(extension)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    folder = out or Path("nabn_results") / folder_name(target)
    own = {
        "data": None if data is None else str(data),
        "image_size": image_size,
        "take": take,
        "device": device,
        "per_class": per_class,
        "cfg_options": cfg_option_items(cfg_options, overrides),
    }
    settings = LoadSettings(
        seed=seed,
        test_images=test_images,
        batch_size=batch_size,
        loader_workers=loader_workers,
        work_dir=folder / "logs",
        launcher=launcher,
    )
    source = workload_source(target, checkpoint, settings, own)
    workload = source.load()
    check_out(folder)
    if examples and workload.write_examples is None:
        raise NabnError("--examples is for configs of mmdetection and mmsegmentation")
    console = Console()
    describe(console, workload)
    request = CalibrationRequest(n=calibration_images, seed=seed, batch_size=batch_size)
    ranges = any(has_input_ranges(scenario.rpu_config) for scenario in scenarios)
    arguments: dict[str, Any] = {
        "scenarios": scenarios,
        "methods": specs,
        "chips": chips,
        "seed": seed,
        "calibration_batches": workload.calibration_sets(specs, request, ranges=ranges),
        "eval_fn": workload.eval_fn,
        "forward_fn": workload.forward_fn,
        "reference_forward_fn": workload.reference_forward_fn,
        "exclude": tuple(exclude or ()),
    }
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
        **{key: value for key, value in workload.facts.items() if key.startswith("test_") and key != "test_images"},
        **({"per_class": True} if per_class else {}),
    )
    log = RecordLog(folder / RECORDS, setup, resume=resume, rank=workload.rank, broadcast=workload.broadcast)
    with log:
        result = evaluate(workload.model, progress=workload.rank == 0, record_file=log, **arguments)
    if workload.rank != 0:
        return
    if examples and workload.write_examples is not None:
        workload.write_examples(result, arguments, examples, folder / "examples")
    conversion = next(iter(result.settings["conversion"].values()))
    console.print(f"On tiles: {conversion}", highlight=False, soft_wrap=True, markup=False)
    show_result(console, result, folder)
