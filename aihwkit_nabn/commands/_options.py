"""Options that several commands have, under one name with one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str | None,
    typer.Argument(metavar="[CHECKPOINT]", help="Weights file: .pth, .pt, .safetensors; classifiers: or random."),
]
Noise = Annotated[
    list[str],
    typer.Option(help="Noise, e.g. pcm, gaussian:sigma=0.06 or pcm+stuck:p_off=0.01; can be repeated."),
]
Time = Annotated[
    list[str],
    typer.Option(help="Time after programming: 1s, 1h, 1d, 1y; can be repeated. (In sweep files the default is 0.)"),
]
Methods = Annotated[
    str,
    typer.Option(help="Calibration methods, separated by commas, with options: paired,distill:steps=20; or all."),
]
Chips = Annotated[int, typer.Option(min=1, help="Chips per noise setting.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first chip and of the choice of images.")]
CalibrationImages = Annotated[int, typer.Option(min=1, help="Unlabelled images to calibrate with, from the train set.")]
TestImages = Annotated[int | None, typer.Option(min=1, help="Number of test images; default: all.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder: classifiers: train/CLASS/images and val/CLASS/images; detectors: COCO's annotations/, train/ and "
        "val/; segmenters: images/{train,val} and masks/{train,val}; cifar10: cifar10_subset/."
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per batch.")]
ImageSize = Annotated[int | None, typer.Option(min=1, help="Classifiers: edge of the images in pixels.")]
CropPct = Annotated[
    float | None, typer.Option(help="Own and timm's models: the image size over the edge resized to; ImageNet: 0.875.")
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Own and timm's models: mean of images in [0, 1]; one number: grey images."),
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Likewise: standard deviation.")]
Interpolation = Annotated[str | None, typer.Option(help="Own and timm's models: bilinear, bicubic, nearest, lanczos.")]
ModelArg = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Argument of your function or of timm's; can be repeated."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Module to keep digital, * and ? match; or a file of nabn place; can be repeated."),
]
Placement = Annotated[
    Path | None, typer.Option(help="File of nabn place: its layers stay digital, as with --exclude FILE.")
]
Take = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Which weights, where CHECKPOINT has several: model, ema, or their key."),
]
LoaderWorkers = Annotated[int | None, typer.Option(min=0, help="Processes that read images.")]
IgnoreIndex = Annotated[
    int | None,
    typer.Option(
        min=0, help="Segmenters of torchvision and transformers: value of mask pixels that count for nothing; 255."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Own models, and those of timm, torchvision and transformers: cpu (the default) or cuda."),
]
CfgOptions = Annotated[
    list[str] | None, typer.Option(help="Configs: KEY=VALUE pairs that change it, as upstream has them.")
]
Extension = Annotated[
    list[str] | None,
    typer.Option("--import", help="Python file or module with noise, methods or workloads of yours; can be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes, one thread each; default: this one.")]
