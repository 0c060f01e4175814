"""What the evaluating commands and tools share: methods and scenarios from text, and showing the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.evaluation import EvaluationResult, MethodSpec, Scenario
    from aihwkit_nabn.workloads import Workload


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Return the numbers of an option, separated by commas.

    Raises:
        NabnError: one of them is none.
    """
    try:
        return [float(part) for part in split_names(text)]
    except ValueError as error:
        raise NabnError(f"{option} must be numbers separated by commas, got {text!r}") from error


def folder_name(target: str) -> str:
    """Return what the folder of a target's results is called."""
    if target.endswith(".py"):
        return Path(target.rpartition("::")[2]).stem
    file, own, name = target.rpartition(".py:")
    return f"{Path(file).name}_{name}" if own else target.replace(":", "_").replace("/", "_")


def parse_scenarios(noises: Sequence[str], times: Sequence[str]) -> list[Scenario]:
    """Return one scenario per noise setting and time; of noise that does not change with time, one.

    Args:
        noises: Presets as `aihwkit_nabn.simulator.parse_preset` takes them.
        times: Times after programming, as `aihwkit_nabn.chip.parse_time` takes them.

    Raises:
        NabnError: a preset or a time is unknown, malformed, out of range or given twice.
    """
    from aihwkit_nabn.evaluation.scenario import scenarios_over_times
    from aihwkit_nabn.simulator import parse_preset
    from aihwkit_nabn.times import parse_time

    return scenarios_over_times([(noise, parse_preset(noise)) for noise in noises], [parse_time(t) for t in times])


def without_impossible(
    console: Console, specs: Sequence[MethodSpec], workload: Workload, asked: str | None
) -> list[MethodSpec]:
    """Return methods without those that replace trained statistics where the network has none, and say so.

    Those that the user names stay: whoever asks for one is told that it cannot be.

    Args:
        console: Where it is said.
        specs: The methods.
        workload: The network.
        asked: The methods as the user gave them, None for the default.
    """
    from aihwkit_nabn.calibration import CALIBRATION_METHODS
    from aihwkit_nabn.nn.own_normalization import has_running_statistics
    from aihwkit_nabn.results import UNCALIBRATED

    if any(map(has_running_statistics, workload.model.modules())):
        return list(specs)
    named = {UNCALIBRATED, *(name.partition(":")[0].strip() for name in split_names(asked or ""))}
    out = [s for s in specs if s.method not in named and CALIBRATION_METHODS.get(s.method).replaces_statistics]
    if out and workload.rank == 0:
        verb = "is" if len(out) == 1 else "are"
        names = ", ".join(spec.method for spec in out)
        console.print(f"{names} {verb} left out: the network has no BatchNorm with trained statistics", highlight=False)
    return [spec for spec in specs if spec not in out]


def show_result(console: Console, result: EvaluationResult, out: Path) -> None:
    """Print the table of the first metric, write the folder of files, and say where they are."""
    from aihwkit_nabn.reporting import print_metrics, print_table

    print_table(result, console)
    print_metrics(result, console)
    result.report(out)
    say_written(console, out)


def say_written(console: Console, folder: Path, pattern: str = "*") -> None:
    """Say which files are in a folder now, and which folders but that of logs."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.glob(pattern) if path.name != "logs")
    text = f"Written to {folder}/: {', '.join(names)}"
    console.print(text, style="bold", highlight=False, soft_wrap=True, markup=False)


def check_out(out: Path) -> Path:
    """Return `out` if a folder can be there: known before the work, not after it.

    Raises:
        NabnError: it is a file, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NabnError(f"--out must be a folder that can be written, got {str(out)!r}: {error.strerror}") from error
    return out
