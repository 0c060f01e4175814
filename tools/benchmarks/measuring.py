"""What the benchmarks share: jobs that take turns, and the memory each takes beyond what was there."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table

Job = Callable[[], object]


def new_table(title: str, columns: Sequence[str], names: int = 1) -> Table:
    """Return a table whose first columns hold names, and the others numbers."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < names else "right", no_wrap=index < names)
    return table


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_of(
    jobs: Mapping[str, Job],
    repeats: int,
    device: torch.device | None = None,
    of: Callable[[list[float]], float] = statistics.median,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return each job's time in seconds, the median of several unless `of` is another.

    They take turns, so that a slow moment of the machine hits all.
    """
    device = device or torch.device("cpu")
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            _wait(device)
            begin = clock()
            job()
            _wait(device)
            if repeat:  # the first round warms up
                times[name].append(clock() - begin)
    return {name: of(values) for name, values in times.items()}


_MEMORY_RUNS = 5


def peak_memory(job: Job, device: torch.device | None = None) -> float | None:
    """Return the largest memory a job takes beyond what was in use, in MB; None where it cannot be told.

    On the CPU the resident memory that Linux counts, on a GPU what torch allocates. Run the job once before. The most
    of several runs counts: memory that the C library has kept in spite of us, and gives again, is not seen.
    """
    found = [_memory_of(job, device) for _ in range(_MEMORY_RUNS)]
    known = [value for value in found if value is not None]
    return max(known) if known else None


def _memory_of(job: Job, device: torch.device | None) -> float | None:
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for later would not be counted again
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
        before_kb = _field(status, "VmRSS")
        job()
        return (_field(status, "VmHWM") - before_kb) / 1024
    except (OSError, KeyError, AttributeError):
        return None


def _field(status: Path, name: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])
