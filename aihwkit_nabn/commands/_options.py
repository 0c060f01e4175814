"""Options that several commands have, under one name with one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str | None,
    typer.Argument(
        metavar="[CHECKPOINT]", help="File with the weights: .pth, .pt, .safetensors; torchvision: or random."
    ),
]
Noise = Annotated[
    list[str],
    typer.Option(help="Noise, e.g. pcm, gaussian:sigma=0.06 or pcm+stuck:p_off=0.01; can be repeated."),
]
Chips = Annotated[int, typer.Option(min=1, help="Chips per noise setting.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first chip, and of the choice of images.")]
CalibrationImages = Annotated[int, typer.Option(min=1, help="Unlabelled images, from the train set.")]
TestImages = Annotated[int | None, typer.Option(min=1, help="Images that are measured on; default: all.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder: classifiers: train/CLASS/images and val/CLASS/images; detectors: COCO's annotations/, train/ and "
        "val/; segmenters: images/{train,val} and masks/{train,val}; cifar10: cifar10_subset/."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per batch.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="torchvision: edge of the images in pixels.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Name of a module that stays digital; * and ? match; can be repeated.")
]
Take = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Of several weights in CHECKPOINT: model, ema, or their place in the file."),
]
LoaderWorkers = Annotated[int | None, typer.Option(min=0, help="Processes that read images.")]
IgnoreIndex = Annotated[
    int | None, typer.Option(min=0, help="torchvision's segmenters: value of mask pixels that count for nothing; 255.")
]
Device = Annotated[str | None, typer.Option(help="torchvision: cpu (the default) or cuda.")]
CfgOptions = Annotated[
    list[str] | None, typer.Option(help="Configs: KEY=VALUE pairs that change it, as upstream has them.")
]
Extension = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python file or module with what you have registered; can be repeated."),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes, one thread each; default: this one.")]
