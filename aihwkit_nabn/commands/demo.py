"""`nabn demo`: every calibration method on a small network, under several kinds of noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aihwkit_nabn.commands import _shapes_demo

if TYPE_CHECKING:
    from aihwkit_nabn.evaluation import MethodSpec, Scenario

CALIBRATION_IMAGES = 256
SHAPES_CHIPS = 3
STEPS = 30


def demo_scenarios(*, quick: bool = False) -> list[Scenario]:
    """Return the noise settings of the demo; `quick` takes the instructive few."""
    from aihwkit_nabn.evaluation import Scenario
    from aihwkit_nabn.simulator import build_preset

    scenarios = [
        Scenario(
            name=f"{kind} {sigma:g}",
            rpu_config=build_preset("gaussian", sigma=sigma, relative_to=relative_to),
            group=f"{kind} noise, relative to {what}",
            strength=sigma,
        )
        for kind, relative_to, what, sigmas in (
            ("additive", "max", "the layer's maximum", (0.10,) if quick else (0.05, 0.10, 0.15)),
            ("multiplicative", "weight", "each weight", () if quick else (0.2, 0.4)),
        )
        for sigma in sigmas
    ]
    for time, text in (("1d", "1 day"), ("1y", "1 year"))[1 if quick else 0 :]:
        scenarios.append(
            Scenario(
                name=f"PCM, {text}",
                rpu_config=build_preset("pcm"),
                t_inference=time,
                group="phase-change memory",
            )
        )
    return scenarios


def with_fewer_steps(methods: list[MethodSpec]) -> list[MethodSpec]:
    """Let ``distill`` take fewer steps, unless told how many: gradient descent takes most of the time otherwise."""
    return [replace(m, options={"steps": STEPS, **m.options}) if m.method == "distill" else m for m in methods]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread inside the block.

    The demo's layers are too small to share: where another process is on the second core, threads that wait for each
    other were seen to take seventy times as long as one alone.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def command(
    out: Annotated[Path, typer.Option(help="Folder for table, plot and numbers.")] = Path("nabn_results/demo"),
    chips: Annotated[int, typer.Option(min=1, help="Chips per noise setting.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first chip.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Two noise settings instead of seven.")] = False,
) -> None:
    """Show what noise costs and calibration recovers: on digits and, with OpenMMLab, detection and segmentation."""
    from rich.console import Console

    from aihwkit_nabn.commands._evaluation import check_out, show_result
    from aihwkit_nabn.evaluation.methods import ALL, method_specs
    from aihwkit_nabn.workloads import CalibrationRequest, LoadSettings, load_workload

    console = Console()
    check_out(out)
    workload = load_workload("digits", LoadSettings(seed=seed))
    console.print(
        f"A small network that reads handwritten digits is put on simulated analog chips, whose weights are inexact "
        f"and drift: {chips} chips for each kind of noise. Each method then recalibrates every chip with "
        f"{CALIBRATION_IMAGES} unlabelled images, without retraining, and accuracy is measured on "
        f"{workload.facts['test_images']} others.",
        highlight=False,
    )
    methods = with_fewer_steps(method_specs([ALL]))
    with one_thread():
        request = CalibrationRequest(n=CALIBRATION_IMAGES, seed=seed)
        result = workload.evaluate(demo_scenarios(quick=quick), methods, request, chips=chips)
    show_result(console, result, out)
    if not _shapes_demo.is_available():
        # As plain text: rich would read "[openmmlab]" as markup and wrap the line, and it is there to be copied.
        hint = f"\nFor the demo's detector and segmenter: {_shapes_demo.install_line()}"
        console.print(hint, highlight=False, markup=False, soft_wrap=True)
    else:
        with one_thread():
            _shapes_demo.shapes_demo(console, out, chips=min(chips, SHAPES_CHIPS), seed=seed, quick=quick)
    console.print(
        "\nNext, your own network:\n"
        "  nabn test torchvision:resnet50 WEIGHTS.pth --data FOLDER --noise pcm --time 1d --methods none,auto\n"
        "  nabn test mmdet::retinanet/retinanet_r50_fpn_1x_coco.py WEIGHTS.pth --noise pcm --time 1d",
        highlight=False,
        soft_wrap=True,
    )
