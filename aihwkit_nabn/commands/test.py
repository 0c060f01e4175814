"""`nabn test`: a trained model of the user's on simulated chips, with and without calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    target: Annotated[str, typer.Argument(metavar="KIND:NAME", help="The model, e.g. torchvision:resnet50.")],
    weights: Annotated[str, typer.Argument(help="Checkpoint (.pth, .pt, .safetensors), or the word random.")],
    data: Annotated[Path, typer.Option(help="Folder with train/CLASS/images and val/CLASS/images.")],
    noise: Annotated[list[str], typer.Option(help="Noise, e.g. pcm or gaussian:sigma=0.06; can be repeated.")],
    time: Annotated[list[str], typer.Option(help="Time after programming: 1s, 1h, 1d, 1y; can be repeated.")] = ["1d"],  # noqa: B006
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    methods: Annotated[
        str, typer.Option(help="Calibration methods, separated by commas; all for every one.")
    ] = "none,population,paired",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 32,
    max_samples: Annotated[int, typer.Option(min=1, help="Calibration images, from train/.")] = 256,
    limit: Annotated[int | None, typer.Option(min=1, help="Test images, from val/; default: all.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Edge of the images in pixels.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Name of a module that stays digital; * and ? match; can be repeated.")
    ] = None,
    extension: Annotated[
        list[str] | None,
        typer.Option("--import", help="Python file or module with noise models or methods of yours; can be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip, and of the choice of images.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, plots and numbers; default: nabn_results/KIND_NAME.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Put a trained model on simulated analog chips and measure what calibration brings back."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import (
        check_out,
        import_extension,
        method_specs,
        parse_scenarios,
        show_result,
        split_names,
    )
    from aihwkit_nabn.commands.targets import TargetOptions, load_target
    from aihwkit_nabn.evaluation import evaluate

    console = Console()
    for source in extension or ():
        import_extension(source)
    scenarios = parse_scenarios(noise, time)
    specs = method_specs(split_names(methods))
    task = load_target(
        target,
        TargetOptions(
            weights=weights,
            data=data,
            batch_size=batch_size,
            max_samples=max_samples,
            limit=limit,
            image_size=image_size,
            workers=workers,
            seed=seed,
            device=device,
        ),
    )
    folder = check_out(out or Path("nabn_results") / target.replace(":", "_").replace("/", "_"))
    for line in task.description:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
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
    )
    conversion = next(iter(result.settings["conversion"].values()))
    console.print(f"On tiles: {conversion}", highlight=False, soft_wrap=True, markup=False)
    show_result(console, result, folder)
