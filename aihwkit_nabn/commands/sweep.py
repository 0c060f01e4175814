"""`nabn sweep`: models, noise, strengths, times, chips, methods and calibration images, all of one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aihwkit_nabn.commands._options import Extension
from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.studies.grid import GridStudy, SweepSpec


def command(
    file: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file that says what to go over.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for records, tables and plots; default: nabn_results/NAME.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes, one thread each; default: one per core.")] = None,
    executor: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    launcher: Annotated[
        str, typer.Option(help="Configs: pytorch, slurm or mpi, where several processes share one big model.")
    ] = "none",
    extension: Extension = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Measure everything a sweep file asks for; the same command again goes on where an interrupted one stopped."""
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
        raise NabnError(f"out must be a folder, got the file {str(folder)!r}")
    study.work_dir = folder / "logs"
    if dry_run:
        _show_plan(console, study, folder)
    elif launcher != "none":
        from aihwkit_nabn.studies.grid.launched import run_launched

        log = run_launched(study, folder, lambda record: _say(console, record.key))
        if log is not None:
            _write_results(console, study.spec, log, folder)
    else:
        again = f"nabn sweep {file}{'' if out is None else f' --out {out}'}"
        log = _run(console, study, folder, jobs, executor, again)
        _write_results(console, study.spec, log, folder)


def _run(console: Console, study: GridStudy, folder: Path, jobs: int | None, executor: str, again: str) -> RecordLog:
    import os

    from aihwkit_nabn.commands._sweep_view import SweepView
    from aihwkit_nabn.studies import run_study

    _say(console, _plan_line(study.spec))
    notes = study.check()
    view = SweepView(console, study.spec)
    try:
        with study.open_log(folder) as log, view:
            for name, value in notes.items():
                log.agree(name, value) if name.startswith("network ") else log.note(name, value)
            return run_study(
                study, log, workers=jobs or os.cpu_count() or 1, executor=executor, on_progress=view.update
            )
    except KeyboardInterrupt:
        _say(console, f"Stopped. {view.done} of {view.total} measurements are kept in {folder}/; to go on: {again}")
        raise


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plan_line(spec: SweepSpec) -> str:
    from aihwkit_nabn.studies.grid import all_measurements, chip_jobs

    models = ", ".join(model.name for model in spec.models)
    windows = "" if spec.stream is None else f", each along a stream of {spec.stream.images} images"
    return (
        f"{spec.name}: {len(all_measurements(spec))} measurements{windows}, on {len(chip_jobs(spec, ()))} chips "
        f"(each programmed anew for every noise setting, time and image quality); models: {models}"
    )


def _show_plan(console: Console, study: GridStudy, folder: Path) -> None:
    from aihwkit_nabn.results.log import finished_keys
    from aihwkit_nabn.studies.grid import chip_jobs
    from aihwkit_nabn.studies.grid.study import RECORDS

    study.check()
    _say(console, _plan_line(study.spec))
    jobs = chip_jobs(study.spec, finished_keys(folder / RECORDS))
    left = sum(len(job.measurements) for job in jobs)
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
        say_written(console, target, sorted(path.name for path in target.iterdir() if path.is_file()))
