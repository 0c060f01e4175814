"""What calibration costs, as a ratio to the forward passes it cannot do without, in one run.

``paired`` and ``common_mode`` need one pass of the reference and one of the chip over the images: their time is divided
by that of those; ``low_rank`` runs the chip's layers beside the reference's, too, which is one pass more. Methods
without a reference are divided by one pass of the chip. A second table has a pass of the calibrated chip over one of
the uncalibrated.

Run: ``python tools/benchmarks/calibration_cost.py``
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated

import torch
import torchvision
import typer
from measuring import new_table, times_of
from rich.console import Console
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.data.resnet_cifar import CifarResNet

PRESET = nabn.presets.GaussianWeightNoisePreset(sigma=0.06)
METHODS = ("population", "ema", "prior", "paired", "common_mode", "low_rank")
# Passes of the reference and of the chip that each takes; one of the chip where not said.
PASSES = {"paired": (1, 1), "common_mode": (1, 1), "low_rank": (1, 2)}
INFERENCE = ("paired", "paired, folded", "common_mode", "common_mode, folded", "low_rank")
CASES: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[int, ...]]] = {
    "ResNet-20, 32x32, batch 64": (CifarResNet, 256, 64, (3, 32, 32)),
    "ResNet-20, 32x32, batch 256": (CifarResNet, 256, 256, (3, 32, 32)),
    "ResNet-18, 224x224, batch 8": (torchvision.models.resnet18, 32, 8, (3, 224, 224)),
    "MobileNetV2, 224x224, batch 8": (torchvision.models.mobilenet_v2, 32, 8, (3, 224, 224)),
}


def _pass(model: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    return run


def _calibration(analog: nn.Module, model: nn.Module, batches: list[Tensor], method: str) -> Callable[[], None]:
    def run() -> None:
        nabn.calibrate(analog, batches, method, reference=model)

    return run


def _calibrated(plain: nn.Module, model: nn.Module, batches: list[Tensor], name: str) -> nn.Module:
    method, _, folded = name.partition(", ")
    chip = copy.deepcopy(plain)
    nabn.calibrate(chip, batches, method, reference=model)
    if folded:
        nabn.fold_calibration(chip)
    return chip


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the first; the shortest time counts.")] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Print a table of ratios."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    title = f"time of calibration / of the passes it needs; {threads} threads, torch {torch.__version__}"
    costs = new_table(title, ("network", "reference pass [s]", "chip pass [s]", *METHODS))
    inference = new_table("a pass of the calibrated chip / of the uncalibrated one", ("network", *INFERENCE))
    for title, (build, n_images, batch_size, shape) in CASES.items():
        model = build().eval()
        # Two copies: the uncalibrated chip's pass is the yardstick, so no calibration may be left on it.
        plain, analog = (nabn.convert_to_noise_aware(model, PRESET) for _ in range(2))
        for chip in (plain, analog):
            nabn.program_chip(chip, seed)
        batches = list(torch.randn(n_images, *shape).split(batch_size))
        jobs = {"reference": _pass(model, batches), "chip": _pass(plain, batches)}
        jobs.update({method: _calibration(analog, model, batches, method) for method in METHODS})
        times = times_of(jobs, repeats, of=min)
        passes = {method: PASSES.get(method, (0, 1)) for method in METHODS}
        needed = {name: of[0] * times["reference"] + of[1] * times["chip"] for name, of in passes.items()}
        ratios = [f"{times[method] / needed[method]:.2f}" for method in METHODS]
        costs.add_row(title, f"{times['reference']:.3f}", f"{times['chip']:.3f}", *ratios)
        jobs = {"plain": _pass(plain, batches)}
        jobs.update({name: _pass(_calibrated(plain, model, batches, name), batches) for name in INFERENCE})
        times = times_of(jobs, repeats, of=min)
        inference.add_row(title, *(f"{times[name] / times['plain']:.2f}" for name in INFERENCE))
    for table in (costs, inference):
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
