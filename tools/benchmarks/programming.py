"""What programming, drifting and copying a chip cost, aihwkit's functions and ours side by side, in one run.

The same PCM devices, tiles, columnwise scaling and global drift compensation on both sides. Seconds are those of the
process (CPU time), the shortest of some rounds in which the two take turns. Memory is what each call adds to the
resident memory at its peak, read from the operating system in a process per side, since torch's allocations on the CPU
are seen by no Python tool; where Linux does not let the peak be reset it is the growth of ``ru_maxrss``.

Our ``program_chip`` always drifts, to 0 s unless told otherwise: the row *program* counts that too.

Run: ``python tools/benchmarks/programming.py --threads 1``
"""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torchvision
import typer
from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from rich.console import Console
from rich.table import Table

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


def best_times(jobs: dict[str, dict[str, Callable[[], object]]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the shortest CPU time of each side's jobs in seconds; the sides take turns."""
    best: dict[str, dict[str, float]] = {side: {} for side in jobs}
    for _ in range(repeats):
        for name in JOBS:
            for side, calls in jobs.items():
                begin = time.process_time()
                calls[name]()
                seconds = time.process_time() - begin
                best[side][name] = min(seconds, best[side].get(name, seconds))
    return best


def peak_growth(job: Callable[[], object]) -> float:
    """Return by how many MB the resident memory grew at its peak while `job` ran."""
    try:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        kept = job()
        after = _status("VmHWM")
    except OSError:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        kept = job()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del kept
    return max(after - before, 0.0)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _memory(side: str, case: str, model_name: str, threads: int) -> dict[str, float]:
    """Run each job once in a new process."""
    options = ["--memory-of", f"{side}/{case}", "--model", model_name, "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    growth: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return growth


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the shortest time counts.")] = 3,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    model: Annotated[str, typer.Option(help="A classification model of torchvision.")] = "resnet18",
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a table of seconds, their ratio and megabytes."""
    torch.set_num_threads(threads)
    if memory_of:
        side, case = memory_of.split("/", 1)
        print(json.dumps({name: peak_growth(job) for name, job in build_jobs(side, case, model).items()}))
        return
    title = f"{model}, PCM with global drift compensation; CPU seconds, {threads} threads, torch {torch.__version__}"
    table = Table(title=title)
    for column in ("tiles", "call", "aihwkit, s", "ours, s", "ratio", "aihwkit, MB", "ours, MB"):
        is_name = column in ("tiles", "call")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for case in CASES:
        times = best_times({side: build_jobs(side, case, model) for side in SIDES}, repeats)
        memory = {side: _memory(side, case, model, threads) for side in SIDES}
        for row, name in enumerate(JOBS):
            theirs, ours = (times[side][name] for side in SIDES)
            megabytes = (f"{memory[side][name]:.0f}" for side in SIDES)
            ratio = ours / theirs
            table.add_row(case if row == 0 else "", name, f"{theirs:.3f}", f"{ours:.3f}", f"{ratio:.2f}", *megabytes)
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
