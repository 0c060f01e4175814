"""What programming, drifting and copying a chip cost, aihwkit's functions and ours side by side, in one run.

The same PCM devices, tiles, columnwise scaling and global drift compensation on both sides. Seconds are those of the
process (CPU time), the shortest of some rounds in which the two take turns. Memory is measured in a process per side.

Our ``program_chip`` always drifts, to 0 s unless told otherwise: the row *program* counts that too.

Run: ``python tools/benchmarks/programming.py --threads 1``
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import torchvision
import typer
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from measuring import new_table, peak_memory, times_of
from rich.console import Console

import aihwkit_nabn as nabn

DAY = 86_400.0
SIDES = ("aihwkit", "ours")
CASES: dict[str, tuple[int, bool]] = {
    # name: (tile size, 0 for one tile per layer; whether the products are perfect)
    "512 x 512": (512, True),
    "512 x 512, converters": (512, False),
    "untiled": (0, True),
}
JOBS = ("program + drift", "program", "drift", "deepcopy")


def build_jobs(side: str, case: str, model_name: str) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name, on an analog model of its own."""
    size, is_perfect = CASES[case]
    mapping = MappingParameter(
        max_input_size=size, max_output_size=size, weight_scaling_omega=1.0, weight_scaling_columnwise=True
    )
    forward = IOParameters(is_perfect=True) if is_perfect else IOParameters()
    torch.manual_seed(0)
    model = torchvision.models.get_model(model_name, weights=None).eval()
    analog: Any
    if side == "ours":
        analog = nabn.convert_to_noise_aware(model, nabn.presets.PCMPreset(mapping=mapping, forward=forward))
        steps = (
            lambda: nabn.program_chip(analog, 0, DAY),
            lambda: nabn.program_chip(analog, 0),
            lambda: nabn.drift_chip(analog, DAY),
        )
    else:
        config = TorchInferenceRPUConfig(
            mapping=mapping,
            forward=forward,
            noise_model=PCMLikeNoiseModel(g_max=25.0),
            drift_compensation=GlobalDriftCompensation(),
        )
        analog = convert_to_analog(model, config).eval()
        steps = (
            lambda: (analog.program_analog_weights(), analog.drift_analog_weights(DAY)),
            lambda: analog.program_analog_weights(),
            lambda: analog.drift_analog_weights(DAY),
        )
    return dict(zip(JOBS, (*steps, lambda: copy.deepcopy(analog)), strict=True))


def _memory(side: str, case: str, model_name: str, threads: int) -> dict[str, float | None]:
    """Run the jobs in a new process."""
    options = ["--memory-of", f"{side}/{case}", "--model", model_name, "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    growth: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return growth


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the first; the shortest time counts.")] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    model: Annotated[str, typer.Option(help="A classification model of torchvision.")] = "resnet18",
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a table of seconds, their ratio and megabytes."""
    torch.set_num_threads(threads)
    if memory_of:
        side, case = memory_of.split("/", 1)
        print(json.dumps({name: peak_memory(job) for name, job in build_jobs(side, case, model).items()}))
        return
    table = new_table(
        f"{model}, PCM with global drift compensation; CPU seconds, {threads} threads, torch {torch.__version__}",
        ("tiles", "call", "aihwkit, s", "ours, s", "ratio", "aihwkit, MB", "ours, MB"),
        names=2,
    )
    for case in CASES:
        jobs = {side: build_jobs(side, case, model) for side in SIDES}
        turns = {f"{side} {name}": jobs[side][name] for name in JOBS for side in SIDES}
        times = times_of(turns, repeats, of=min, clock=time.process_time)
        memory = {side: _memory(side, case, model, threads) for side in SIDES}
        for row, name in enumerate(JOBS):
            theirs, ours = (times[f"{side} {name}"] for side in SIDES)
            taken = (memory[side][name] for side in SIDES)
            megabytes = ("-" if value is None else f"{value:.0f}" for value in taken)
            seconds = (f"{theirs:.3f}", f"{ours:.3f}", f"{ours / theirs:.2f}")
            table.add_row(case if row == 0 else "", name, *seconds, *megabytes)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
