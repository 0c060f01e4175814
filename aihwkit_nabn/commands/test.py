"""`nabn test`: a trained model of the user's on simulated chips, with and without calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.errors import NabnError

RECORDS = "records.jsonl"


def command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="torchvision:NAME, a config file of mmdetection or mmsegmentation, or mmdet::FILE, mmseg::FILE.",
        ),
    ],
    weights: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="File (.pth, .pt, .safetensors); torchvision: or random.")
    ],
    noise: Annotated[
        list[str],
        typer.Option(help="Noise, e.g. pcm, gaussian:sigma=0.06 or pcm+stuck:p_off=0.01; can be repeated."),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    data: Annotated[
        Path | None, typer.Option(help="torchvision: folder with train/CLASS/images and val/CLASS/images.")
    ] = None,
    time: Annotated[list[str], typer.Option(help="Time after programming: 1s, 1h, 1d, 1y; can be repeated.")] = ["1d"],  # noqa: B006
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    methods: Annotated[
        str,
        typer.Option(help="Calibration methods, by commas, with options if need be: paired,distill:steps=20; or all."),
    ] = "none,population,auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch; default: 32, or what the config says.")
    ] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Calibration images, from the train set.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="torchvision: test images, from val/; default: all.")] = None,
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
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; default: 2, or what the config says.")
    ] = None,
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

    from aihwkit_nabn.commands._evaluation import (
        check_out,
        folder_name,
        loop_methods,
        parse_scenarios,
        show_result,
        split_names,
    )
    from aihwkit_nabn.commands._openmmlab import (
        cfg_option_items,
        is_config,
        read_config,
        refuse_options,
        test_config,
    )
    from aihwkit_nabn.evaluation.methods import method_specs

    console = Console()
    items = cfg_option_items(cfg_options, overrides)
    from aihwkit_nabn.extension import import_extension

    for source in extension or ():
        import_extension(source)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    folder = out or Path("nabn_results") / folder_name(target)
    if is_config(target):
        refuse_options({"data": data, "limit": limit, "image-size": image_size, "device": device})
        config = read_config(target, items)
        from aihwkit_nabn.openmmlab.run import TestRun

        run = TestRun(
            checkpoint=weights,
            noises=noise,
            times=time,
            methods=loop_methods(specs),
            chips=chips,
            seed=seed,
            max_samples=max_samples,
            batch_size=batch_size,
            exclude=tuple(exclude or ()),
            workers=workers,
            work_dir=str(check_out(folder)),
            launcher=launcher,
            per_class=per_class,
            examples=examples,
            take=take,
            records=str(folder / RECORDS),
            resume=resume,
        )
        test_config(console, config, run)
        return
    if launcher != "none":
        raise NabnError("--launcher is for configs of mmdetection and mmsegmentation")
    if per_class or examples:
        raise NabnError("--per-class and --examples are for configs of mmdetection and mmsegmentation")
    from aihwkit_nabn.commands._torchvision import classifier_options
    from aihwkit_nabn.evaluation import evaluate
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.targets import load_target

    options = classifier_options(
        weights,
        data=data,
        batch_size=batch_size,
        workers=workers,
        device=device,
        cfg_options=items,
        max_samples=max_samples,
        limit=limit,
        image_size=image_size,
        take=take,
        seed=seed,
    )
    task = load_target(target, options)
    check_out(folder)
    for line in task.description:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    setup = setup_of(
        task.model,
        target=target,
        data=data,
        limit=limit,
        image_size=image_size,
        batch_size=batch_size,
        max_samples=max_samples,
        seed=seed,
        exclude=exclude or [],
    )
    with RecordLog(folder / RECORDS, setup, resume=resume) as log:
        result = evaluate(
            task.model,
            scenarios=scenarios,
            methods=specs,
            chips=chips,
            seed=seed,
            calibration_batches=task.calibration_batches,
            eval_fn=task.eval_fn,
            forward_fn=task.forward_fn,
            exclude=tuple(exclude or ()),
            record_file=log,
        )
    conversion = next(iter(result.settings["conversion"].values()))
    console.print(f"On tiles: {conversion}", highlight=False, soft_wrap=True, markup=False)
    show_result(console, result, folder)
