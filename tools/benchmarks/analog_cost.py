"""What an analog forward pass costs, as a ratio to the digital one in the same run, with aihwkit's tiles as peers.

Run: ``python tools/benchmarks/analog_cost.py layer`` (seconds), ``... networks`` or ``... detectors`` (minutes).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import torchvision
import typer
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from measuring import new_table, peak_memory, times_of
from rich.console import Console
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn import native
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.input_ranges import ranged_layers, set_input_range
from aihwkit_nabn.simulator import NoiseAwareRPUConfig

DETECTORS = {
    "RetinaNet R50": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "Faster R-CNN R50": "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
}
# The floor issue 4 names: a digital layer, and for every partial sum a normal number and an ADC step on one core.
FLOOR_NS = 8.0
_NOT_COMPILED = "not compiled"


def settings(kind: type, setting: str, rows: int) -> Any:
    """Return a configuration: ``perfect``, ``static`` (8 bit, output noise, static ranges) or ``per vector``."""
    config = kind(drift_compensation=None)
    config.mapping = MappingParameter(
        max_input_size=rows, max_output_size=rows, weight_scaling_omega=1.0, weight_scaling_columnwise=True
    )
    if setting == "perfect":
        config.forward = IOParameters(is_perfect=True)
        return config
    static = setting == "static"
    config.forward = IOParameters(
        inp_res=254.0,
        out_res=254.0,
        out_bound=10.0,
        out_noise=0.04,
        bound_management=BoundManagementType.NONE,
        noise_management=NoiseManagementType.NONE if static else NoiseManagementType.ABS_MAX,
    )
    config.pre_post.input_range.enable = static
    return config


def contenders(model: nn.Module, setting: str, rows: int, peers: list[str]) -> dict[str, nn.Module]:
    """Return the analog models to compare: ours, and those of aihwkit that this torch can run."""
    ours = nabn.convert_to_noise_aware(model, settings(NoiseAwareRPUConfig, setting, rows))
    for layer in ranged_layers(ours).values():
        set_input_range(layer, 3.0)  # suits normally distributed inputs
    made: dict[str, nn.Module] = {"ours": ours}
    for name, kind in (("aihwkit torch", TorchInferenceRPUConfig), ("aihwkit compiled", InferenceRPUConfig)):
        if name in peers:
            made[name] = convert_to_analog(copy.deepcopy(model), settings(kind, setting, rows)).eval()
    return made


def pass_of(forward: Callable[[nn.Module], Any], model: nn.Module, dtype: torch.dtype | None) -> Callable[[], object]:
    """Return a job: one forward pass without gradients."""

    def run() -> object:
        device = next(model.parameters()).device.type
        with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return forward(model)

    return run


def not_compiled(job: Callable[[], object]) -> Callable[[], object]:
    """Return the job done without the compiled converters."""
    return mock.patch.dict(os.environ, NABN_NATIVE="0")(job)


def partial_sums(model: nn.Module, forward: Callable[[nn.Module], Any]) -> int:
    """Count the values that tiles give in one pass: outputs times the tiles that add to each."""
    total = 0

    def count(layer: Any, args: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * len(layer.analog_module.array)

    handles = [module.register_forward_hook(count) for module in model.modules() if hasattr(module, "analog_module")]
    with torch.no_grad():
        forward(model)
    for handle in handles:
        handle.remove()
    return total


class Report:
    """The table, row by row."""

    def __init__(self, title: str, device: torch.device, dtype: torch.dtype | None, repeats: int) -> None:
        self.device, self.dtype, self.repeats = device, dtype, repeats
        ours, theirs = ("ours", f"ours, {_NOT_COMPILED}"), ("aihwkit torch", "aihwkit compiled")
        columns = ("work", "digital [ms]", *ours, "floor", *theirs, "ours / digital [MB]")
        self.table = new_table(title, columns)

    def add(
        self,
        title: str,
        model: nn.Module,
        forward: Callable[[nn.Module], Any],
        setting: str,
        rows: int,
        peers: list[str],
    ) -> None:
        """Measure one kind of work and add its row."""
        models = {"digital": model, **contenders(model, setting, rows, peers)}
        for entry in models.values():
            entry.to(self.device)
        jobs = {name: pass_of(forward, entry, self.dtype) for name, entry in models.items()}
        if setting != "perfect" and self.device.type == "cpu" and native.is_available():
            jobs[_NOT_COMPILED] = not_compiled(jobs["ours"])
        times = times_of(jobs, self.repeats, self.device)
        memory = {name: peak_memory(jobs[name], self.device) for name in ("digital", "ours")}
        digital = times["digital"]
        sums = 0 if setting == "perfect" else partial_sums(models["ours"], forward)
        cores = torch.get_num_threads() if self.device.type == "cpu" else 0
        floor = f"{1.0 + sums * FLOOR_NS * 1e-9 / cores / digital:.2f}" if cores else "-"
        ratios = [f"{times[name] / digital:.2f}" if name in times else "-" for name in ("ours", _NOT_COMPILED)]
        cells = [f"{digital * 1e3:.1f}", *ratios, floor]
        for name in ("aihwkit torch", "aihwkit compiled"):
            cells.append(f"{times[name] / digital:.1f}" if name in times else "-")
        known = all(value is not None for value in memory.values())
        cells.append(f"{memory['ours']:.0f} / {memory['digital']:.0f}" if known else "-")
        self.table.add_row(title, *cells)


def layers(report: Report, peers: list[str]) -> None:
    """A convolution 64-64 3x3 on 8 maps of 56x56, whole and on two and three tile rows."""
    conv, x = nn.Conv2d(64, 64, 3, padding=1).eval(), torch.randn(8, 64, 56, 56).to(report.device)
    for title, setting, rows in (
        ("conv 64-64 3x3, perfect", "perfect", 0),
        ("8 bit, noise, 1 tile", "static", 0),
        ("8 bit, noise, 2 tiles (512 rows)", "static", 512),
        ("8 bit, noise, 3 tiles (256 rows)", "static", 256),
        ("8 bit, noise, range per vector", "per vector", 0),
    ):
        report.add(title, conv, lambda model: model(x), setting, rows, peers)


def networks(report: Report, peers: list[str]) -> None:
    """ResNet-18 on four images of 224x224."""
    x = torch.randn(4, 3, 224, 224).to(report.device)
    peers = [name for name in peers if name != "aihwkit compiled"]
    for title, setting in (("ResNet-18, 224, perfect", "perfect"), ("ResNet-18, 224, 8 bit, noise", "static")):
        report.add(title, torchvision.models.resnet18().eval(), lambda model: model(x), setting, 512, peers)


def detectors(report: Report, peers: list[str]) -> None:
    """RetinaNet and Faster R-CNN on one image of 800x1216, backbone, neck and heads."""
    from aihwkit_nabn.openmmlab.config import build_digital, load_config

    x = torch.randn(1, 3, 800, 1216).to(report.device)

    def forward(model: Any) -> Any:
        features = model.extract_feat(x)
        if not getattr(model, "with_rpn", False):
            return model.bbox_head(features)
        proposals = torch.rand(1000, 5, device=x.device) * 400.0
        proposals[:, 0] = 0.0
        proposals[:, 3:] += proposals[:, 1:3] + 16.0
        return model.rpn_head(features), model.roi_head._bbox_forward(features, proposals)

    peers = [name for name in peers if name != "aihwkit compiled"]
    for title, name in DETECTORS.items():
        model = build_digital(load_config(name)).eval()
        report.add(f"{title}, 800x1216, 8 bit, noise", model, forward, "static", 512, peers)


PARTS: dict[str, Callable[[Report, list[str]], None]] = {
    "layer": layers,
    "networks": networks,
    "detectors": detectors,
}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="layer, networks, detectors; default: all.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the first; the median counts.")] = 9,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    peers: Annotated[bool, typer.Option(help="Measure aihwkit's tiles too.")] = True,
    device: Annotated[str, typer.Option()] = "cpu",
    autocast: Annotated[bool, typer.Option(help="In float16 on a GPU, bfloat16 on the CPU.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
) -> None:
    """Print a table of ratios to the digital pass; "floor": digital plus 8 ns per partial sum on one core."""
    unknown = [part for part in parts or () if part not in PARTS]
    if unknown:
        raise NabnError(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = torch.device(device)
    dtype = (torch.float16 if place.type == "cuda" else torch.bfloat16) if autocast else None
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{threads} threads"
    kind = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    report = Report(f"analog pass / digital pass; {where}, {kind}, torch {torch.__version__}", place, dtype, repeats)
    names = ["aihwkit torch", *(["aihwkit compiled"] if place.type == "cpu" else [])] if peers else []
    for part in parts or PARTS:
        PARTS[part](report, names)
    console = Console()
    Console(width=max(console.width, 120)).print(report.table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w") as file:
            Console(file=file, width=120).print(report.table)


if __name__ == "__main__":
    typer.run(main)
