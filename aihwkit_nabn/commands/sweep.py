"""`nabn sweep`: models, noise, strengths, times, chips, methods and calibration images, all of one file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aihwkit_nabn.commands import _options as opt
from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.studies.grid import GridStudy, SweepSpec


def command(
    file: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the sweep.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for records, tables and plots; default: nabn_results/NAME.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes, one thread each; default: one per core.")] = None,
    executor: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    launcher: Annotated[
        str, typer.Option(help="Configs: pytorch, slurm or mpi, where several processes share one big model.")
    ] = "none",
    extension: opt.Extension = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, measure nothing.")] = False,
) -> None:
    """Measure everything in a sweep file; run the same command again to continue after an interruption."""
    from rich.console import Console

    from aihwkit_nabn.studies import EXECUTORS
    from aihwkit_nabn.studies.grid import GridStudy, read_yaml
    from aihwkit_nabn.workloads import LoadSettings

    console = Console()
    content = read_yaml(file)
    if extension and isinstance(content, dict):
        own = content.get("import") or []
        content = {**content, "import": [*([own] if isinstance(own, str) else own), *extension]}
    EXECUTORS.get(executor)
    LoadSettings(launcher=launcher)  # checks it
    study = GridStudy(content, launcher=launcher)
    folder = out or Path("nabn_results") / study.spec.name
    if folder.exists() and not folder.is_dir():
        raise NabnError(f"--out must be a folder, got the file {str(folder)!r}")
    study.work_dir = folder / "logs"
    if dry_run:
        _show_plan(console, study, folder)
        return
    given = [("--out", out), ("--jobs", jobs), ("--executor", executor if executor != "local" else None)]
    given += [
        ("--launcher", launcher if launcher != "none" else None),
        *(("--import", each) for each in extension or ()),
    ]
    again = [str(part) for option in given if option[1] is not None for part in option]
    _run(console, study, folder, jobs, executor, shlex.join(["nabn", "sweep", str(file), *again]))


def _run(console: Console, study: GridStudy, folder: Path, jobs: int | None, executor: str, again: str) -> None:
    from aihwkit_nabn.commands._sweep_view import SweepView
    from aihwkit_nabn.studies import run_study

    rank, alone = study.rank(), study.launcher == "none"
    view = SweepView(console, study.spec, shown=rank == 0)
    if rank == 0:
        _say(console, _plan_line(study.spec))
    try:
        notes = study.check() if alone else {}  # a launcher's processes load their model together
        with study.open_log(folder, rank) as log, view:
            for name, value in notes.items():
                log.agree(name, value) if name.startswith("network ") else log.note(name, value)
            workers = jobs or os.cpu_count() or 1 if alone else None
            run_study(study, log, workers=workers, executor=executor, on_progress=view.update)
    except KeyboardInterrupt:
        if rank == 0:
            _say(console, f"Stopped. {view.done} of {view.total} measurements are kept in {folder}/; to go on: {again}")
        raise
    if rank == 0:
        _write_results(console, study.spec, log, folder)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plan_line(spec: SweepSpec) -> str:
    from aihwkit_nabn.studies.grid import all_measurements, chip_jobs
    from aihwkit_nabn.times import format_time

    models = ", ".join(model.name for model in spec.models)
    times = ", ".join(format_time(seconds) for seconds in spec.time)
    windows = "" if spec.stream is None else f", each along a stream of {spec.stream.images} images"
    return (
        f"{spec.name}: {len(all_measurements(spec))} measurements{windows}, on {len(chip_jobs(spec, ()))} chips "
        f"(each programmed anew for every noise setting, time and image quality); models: {models}; "
        f"time after programming: {times}"
    )


def _show_plan(console: Console, study: GridStudy, folder: Path) -> None:
    notes = study.check()
    with study.open_log(folder, rank=1) as log:  # to be read only
        for name, value in notes.items():
            if name.startswith("network "):
                log.agree(name, value)
    jobs = study.jobs(log.records)
    _say(console, _plan_line(study.spec))
    left = sum(map(len, jobs))
    _say(console, f"Left to do in {folder}/: {left} measurements on {len(jobs)} chips. Nothing was run.")


def _write_results(console: Console, spec: SweepSpec, store: RecordLog, folder: Path) -> None:
    from aihwkit_nabn.commands._evaluation import say_written
    from aihwkit_nabn.reporting import print_table
    from aihwkit_nabn.studies.grid import results_of
    from aihwkit_nabn.studies.grid.plots import write_axis_plots

    for name, result in results_of(spec, store).items():
        console.print(f"\n{name}", style="bold", markup=False, highlight=False)
        print_table(result, console)
        target = folder / name
        result.report(target)
        write_axis_plots(spec, name, store.sorted_records(), target)
        say_written(console, target)
