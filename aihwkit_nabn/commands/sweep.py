"""`nabn sweep`: models, noise, strengths, times, chips, methods and calibration images, all of one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.sweeps import SweepSpec

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def command(
    file: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file that says what to go over.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for records, tables and plots; default: nabn_results/NAME.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, one thread each; default: one per core.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    launcher: Annotated[
        str, typer.Option(help="Configs: pytorch, slurm or mpi, where several processes share one big model.")
    ] = "none",
    extension: Annotated[
        list[str] | None,
        typer.Option("--import", help="Python file or module with noise models or methods of yours; can be repeated."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done.")] = False,
) -> None:
    """Measure everything a sweep file asks for; the same command again goes on where an interrupted one stopped."""
    from rich.console import Console

    from aihwkit_nabn.sweeps import EXECUTORS, parse_spec, read_yaml

    console = Console()
    content = read_yaml(file)
    if extension and isinstance(content, dict):
        own = content.get("import") or []
        content = {**content, "import": [*([own] if isinstance(own, str) else own), *extension]}
    spec = parse_spec(content)
    EXECUTORS.get(executor)
    if launcher not in LAUNCHERS:
        raise NabnError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {launcher!r}")
    folder = out or Path("nabn_results") / spec.name
    if folder.exists() and not folder.is_dir():
        raise NabnError(f"out must be a folder, got the file {str(folder)!r}")
    if dry_run:
        _show_plan(console, spec, folder)
        return
    if launcher != "none":
        store = _run_launched(console, content, folder, launcher)
        if store is None:
            return
    else:
        store = _run(console, spec, content, folder, workers, executor, file, out)
    _write_results(console, spec, store, folder)


def _run_launched(console: Console, content: Any, folder: Path, launcher: str) -> RecordLog | None:
    from aihwkit_nabn.sweeps.launched import run_launched

    def tell(record: Any) -> None:
        console.print(record.key, markup=False, highlight=False, soft_wrap=True)

    return run_launched(content, folder, launcher, on_record=tell)


def _run(
    console: Console,
    spec: SweepSpec,
    content: Any,
    folder: Path,
    workers: int | None,
    executor: str,
    file: Path,
    out: Path | None,
) -> RecordLog:
    import os

    from aihwkit_nabn.commands._sweep_view import SweepView
    from aihwkit_nabn.sweeps import run_sweep

    console.print(_plan_line(spec), markup=False, highlight=False, soft_wrap=True)
    view = SweepView(console, spec)
    try:
        with view:
            return run_sweep(
                content, folder, workers=workers or os.cpu_count() or 1, executor=executor, on_progress=view.update
            )
    except KeyboardInterrupt:
        again = f"nabn sweep {file}{'' if out is None else f' --out {out}'}"
        console.print(
            f"Stopped. {view.done} of {view.total} measurements are kept in {folder}/; to go on: {again}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise


def _plan_line(spec: SweepSpec) -> str:
    from aihwkit_nabn.sweeps import all_jobs, tasks_of

    jobs, tasks = all_jobs(spec), tasks_of(spec, ())
    models = ", ".join(model.name for model in spec.models)
    windows = "" if spec.stream is None else f", each along a stream of {spec.stream.images} images"
    return (
        f"{spec.name}: {len(jobs)} measurements{windows}, on {len(tasks)} chips "
        f"(each programmed anew for every noise setting, time and image quality); models: {models}"
    )


def _show_plan(console: Console, spec: SweepSpec, folder: Path) -> None:
    from aihwkit_nabn.results.log import finished_keys
    from aihwkit_nabn.sweeps import tasks_of
    from aihwkit_nabn.sweeps.run import RECORDS, check_models

    check_models(spec)
    console.print(_plan_line(spec), markup=False, highlight=False, soft_wrap=True)
    tasks = tasks_of(spec, finished_keys(folder / RECORDS))
    left = sum(len(task.jobs) for task in tasks)
    console.print(
        f"Left to do in {folder}/: {left} measurements on {len(tasks)} chips. Nothing was run.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _write_results(console: Console, spec: SweepSpec, store: RecordLog, folder: Path) -> None:
    from aihwkit_nabn.reporting import print_table
    from aihwkit_nabn.sweeps import results_of
    from aihwkit_nabn.sweeps.plots import write_axis_plots

    for name, result in results_of(spec, store).items():
        console.print(f"\n{name}", style="bold", markup=False, highlight=False)
        print_table(result, console)
        target = folder / name
        result.report(target)
        write_axis_plots(spec, name, store.sorted_records(), target)
        files = ", ".join(sorted(path.name for path in target.iterdir() if path.is_file()))
        console.print(f"Written to {target}/: {files}", style="bold", highlight=False, soft_wrap=True, markup=False)
