"""`nabn sensitivity`: which layers hurt most, one layer at a time on the chip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aihwkit_nabn.errors import NabnError


def command(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]",
            help="torchvision:NAME, a config of mmdetection or mmsegmentation; default: the embedded digits.",
        ),
    ] = None,
    weights: Annotated[str | None, typer.Argument(metavar="[CHECKPOINT]", help="File with the weights.")] = None,
    noise: Annotated[list[str], typer.Option(help="Noise, e.g. pcm or gaussian:sigma=0.06; can be repeated.")] = [  # noqa: B006
        "gaussian:sigma=0.1"
    ],
    time: Annotated[list[str], typer.Option(help="Time after programming; can be repeated.")] = ["1d"],  # noqa: B006
    methods: Annotated[str, typer.Option(help="Calibration methods, separated by commas.")] = "none,paired",
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, and of the choice of images.")] = 0,
    reverse: Annotated[bool, typer.Option("--reverse", help="Also all layers on the chip but one.")] = False,
    data: Annotated[Path | None, typer.Option(help="torchvision: folder with train/ and val/.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch.")] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 128,
    limit: Annotated[int | None, typer.Option(min=1, help="Test images; default: all.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="torchvision: edge of the images in pixels.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Name of a module that stays digital.")] = None,
    take: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of several weights in CHECKPOINT: model, ema, or their place in the file."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
    device: Annotated[str | None, typer.Option(help="torchvision: cpu (the default) or cuda.")] = None,
    cfg_options: Annotated[list[str] | None, typer.Option(help="Configs: KEY=VALUE that changes it.")] = None,
    extension: Annotated[
        list[str] | None,
        typer.Option("--import", help="Python file or module with noise models or methods of yours; can be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for sensitivity.json, table and plot; default: nabn_results/TARGET.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what an interrupted run has measured.")] = False,
) -> None:
    """Measure what each layer costs alone on the chip, the others digital: which ones to keep digital, or to mend."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, folder_name, parse_scenarios, split_names
    from aihwkit_nabn.commands._openmmlab import is_config, read_config, refuse_options
    from aihwkit_nabn.commands._sensitivity import (
        Study,
        digits_arguments,
        openmmlab_arguments,
        run_study,
        show_sensitivity,
        torchvision_arguments,
    )
    from aihwkit_nabn.commands._torchvision import classifier_options
    from aihwkit_nabn.evaluation.methods import method_specs
    from aihwkit_nabn.extension import import_extension

    for source in extension or ():
        import_extension(source)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    if target is None:
        if weights is not None or data is not None:
            raise NabnError("the embedded digits take neither a checkpoint nor --data; name a TARGET")
        name = "digits"
    else:
        if weights is None:
            raise NabnError(f"CHECKPOINT is missing: the trained weights of {target}")
        name = folder_name(target)
    folder = out or Path("nabn_results") / name
    study = Study(
        scenarios=scenarios,
        methods=specs,
        chips=chips,
        seed=seed,
        max_samples=max_samples,
        reverse=reverse,
        exclude=tuple(exclude or ()),
    )
    if target is None:
        arguments = digits_arguments(study, limit=limit)
    elif is_config(target):
        refuse_options({"data": data, "image-size": image_size, "device": device})
        config = read_config(target, list(cfg_options or ()))
        arguments = openmmlab_arguments(
            study,
            config,
            str(weights),
            noises=noise,
            times=time,
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            take=take,
            work_dir=check_out(folder) / "logs",
        )
    else:
        options = classifier_options(
            str(weights),
            data=data,
            batch_size=batch_size,
            workers=workers,
            device=device,
            cfg_options=cfg_options,
            max_samples=max_samples,
            limit=limit,
            image_size=image_size,
            take=take,
            seed=seed,
        )
        arguments = torchvision_arguments(target, options, Console())
    check_out(folder)
    setup = {"target": name, "noise": noise, "time": time, "methods": methods, "seed": seed, "limit": limit}
    setup |= {"max_samples": max_samples, "exclude": list(exclude or ())}
    # What decides about network and images; a reverse study measures the same and more.
    setup |= {"network": target, "weights": weights, "data": None if data is None else str(data)}
    setup |= {"batch_size": batch_size, "image_size": image_size, "cfg_options": cfg_options, "take": take}
    result = run_study(study, arguments, folder / "sensitivity.jsonl", setup, resume=resume)
    show_sensitivity(Console(), result, folder)
