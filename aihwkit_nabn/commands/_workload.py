"""What the commands that measure a workload share: finding it, and saying what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aihwkit_nabn.errors import NabnError

if TYPE_CHECKING:
    from rich.console import Console

    from aihwkit_nabn.evaluation import Scenario
    from aihwkit_nabn.results import RecordLog
    from aihwkit_nabn.studies._base import WorkloadSource, WorkloadStudy
    from aihwkit_nabn.workloads import Workload


_SETTINGS = ("seed", "test_images", "batch_size", "loader_workers", "launcher")
_OF_A_KIND = (
    *("checkpoint", "data", "image_size", "crop_pct", "mean", "std", "interpolation", "take", "device", "per_class"),
    "ignore_index",
)
# Of a log's set-up, as version 0.1 named its fields; and what has no dashes.
_NAMED = {
    "limit": "--test-images",
    "max_samples": "--calibration-images",
    "target": "TARGET",
    "weights": "CHECKPOINT",
    "checkpoint": "CHECKPOINT",
    "model_args": "--model-arg",
}


def option_name(name: str) -> str:
    """Return how a user writes an option, or what is in a log's set-up: ``--image-size``."""
    return _NAMED.get(name, f"--{name.replace('_', '-')}")


def workload_source(target: str, given: Mapping[str, Any], folder: Path) -> WorkloadSource:
    """Return where a workload is found, its options checked.

    Args:
        target: As `load_workload` takes it.
        given: A command's options by name, of which this takes those that are about the workload.
        folder: Of the results; logs go below it.

    Raises:
        NabnError: there is no such workload, or it does not take an option.
    """
    from aihwkit_nabn.studies._base import WorkloadSource
    from aihwkit_nabn.workloads import LoadSettings, find_workload

    settings = LoadSettings(work_dir=folder / "logs", **{name: given[name] for name in _SETTINGS if name in given})
    options = {name: given[name] for name in _OF_A_KIND if given.get(name) not in (None, False)}
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    items = cfg_option_items(given.get("cfg_options"), given.get("overrides"))
    options |= {"cfg_options": items} if items else {}
    model_args = model_arguments(given.get("model_arg"))
    options |= {"model_args": model_args} if model_args else {}
    kind, _ = find_workload(target)
    kind.checked(target, options, named=option_name)
    return WorkloadSource(text=target, settings=settings, options=options)


def open_log(path: Path, setup: Mapping[str, Any], given: Mapping[str, Any], **more: Any) -> RecordLog:
    """Return a command's log; the user's own files must have the same contents whenever it is gone on with.

    Args:
        path: The file.
        setup: As `RecordLog` takes it.
        given: The command's options by name.
        more: What else `RecordLog` takes.
    """
    from aihwkit_nabn.extension import contents_of
    from aihwkit_nabn.results import RecordLog

    named = {name: option_name(name) for name in (*given, *_NAMED)}
    named |= {f"recipe.{name}": option for name, option in named.items()}
    log = RecordLog(path, dict(setup), resume=given["resume"], named=named, **more)
    for source in given["extension"] or ():
        log.agree(f"contents of {source}", contents_of(source))
    return log


def model_arguments(items: Sequence[str] | None) -> dict[str, Any] | None:
    """Return ``KEY=VALUE`` texts as arguments, None if there are none; what is no Python literal is text.

    Raises:
        NabnError: one is not of that form, or a key is there twice.
    """
    found: dict[str, Any] = {}
    for item in items or ():
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise NabnError(f"--model-arg must be KEY=VALUE, got {item!r}")
        if key in found:
            raise NabnError(f"--model-arg gives {key} twice")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found or None


def agree_on(log: RecordLog, workload: Workload) -> None:
    """Keep in a log what must be the same when it is gone on with: the network, and what its workload says of itself.

    Raises:
        NabnError: it is another one.
    """
    from aihwkit_nabn.evaluation.settings import setup_of

    for name, value in {"network": setup_of(workload.model)["model"], **workload.facts.get("setup", {})}.items():
        log.agree(name, value)


def describe(console: Console, workload: Workload) -> None:
    """Say what is measured, in the first of several processes."""
    for line in workload.description if workload.rank == 0 else ():
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def cfg_option_items(options: Sequence[str] | None, more: Sequence[str] | None) -> list[str] | None:
    """Return all ``KEY=VALUE`` texts, None if there are none; upstream takes several behind one ``--cfg-options``.

    Raises:
        NabnError: there are further arguments, but no ``--cfg-options`` that they could belong to.
    """
    if more and not options:
        raise NabnError(f"unexpected argument {more[0]!r}; KEY=VALUE pairs come after --cfg-options")
    return [*options, *(more or ())] if options else None


def run_logged(
    study: WorkloadStudy,
    console: Console,
    path: Path,
    setup: Mapping[str, Any],
    given: Mapping[str, Any],
    scenarios: Iterable[Scenario],
) -> RecordLog:
    """Run a study, its records going to a log, and return the log, closed.

    Progress goes to the error stream, what is noted on trainings to `console`.

    Args:
        study: The study.
        console: For the user.
        path: Of the log.
        setup: As `RecordLog` takes it.
        given: The command's options by name.
        scenarios: Those of the study, whose files must stay the same.

    Raises:
        NabnError: the log is of another network, set-up or file.
    """
    from aihwkit_nabn.evaluation.settings import agree_on_files
    from aihwkit_nabn.progress import Meter
    from aihwkit_nabn.studies import Note, Progress, run_study
    from aihwkit_nabn.studies.retraining import training_line

    with open_log(path, setup, given) as log, Meter(transient=True) as meter:

        def on_progress(progress: Progress) -> None:
            meter.update(progress.done, progress.total, before=progress.before)
            meter.show("begins" if progress.latest is None else progress.latest.key)

        def on_note(note: Note) -> None:
            line = training_line(note)
            if line is not None:
                meter.tell(console, line)

        agree_on(log, study.workload)
        agree_on_files(log, scenarios)
        run_study(study, log, workers=given["jobs"], on_progress=on_progress, on_note=on_note)
    return log


def import_extensions(sources: Sequence[str] | None) -> tuple[str, ...]:
    """Import the user's own modules and return them."""
    from aihwkit_nabn.extension import import_extension

    for source in sources or ():
        import_extension(source)
    return tuple(sources or ())
