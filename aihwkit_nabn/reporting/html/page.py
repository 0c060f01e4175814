"""Putting the page together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from aihwkit_nabn._version import __version__
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import write_text
from aihwkit_nabn.reporting import tables
from aihwkit_nabn.reporting.html.beside import find_examples, find_sensitivity
from aihwkit_nabn.reporting.html.figures import accuracy_pictures, legend
from aihwkit_nabn.reporting.html.glossary import GLOSSARY, METHODS
from aihwkit_nabn.reporting.html.layers import shift_pictures
from aihwkit_nabn.reporting.html.sources import Source, find_sources
from aihwkit_nabn.reporting.html.summary import summarize
from aihwkit_nabn.reporting.html.svg import DARK, LIGHT, color_variables
from aihwkit_nabn.reporting.style import line_styles
from aihwkit_nabn.reporting.text import missing_note
from aihwkit_nabn.results import Results
from aihwkit_nabn.times import format_time

TITLE = "What an analog chip does to a network"


def write_html(results: Results | Sequence[Source] | str | Path, path: str | Path, *, title: str | None = None) -> Path:
    """Write one self-contained HTML file: no scripts, nothing loaded from anywhere.

    Args:
        results: An evaluation's result; or a ``results.json`` or a folder with some, see `find_sources`, where the
            files beside them (examples, sensitivity) come in too.
        path: The file; its folder is made if need be.
        title: The page's heading; default: `TITLE`.

    Returns:
        The path.

    Raises:
        NabnError: there are no results, one is damaged, or the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise NabnError(f"out must be a file, got the folder {str(path)!r}")
    if title is not None and not title.strip():
        raise NabnError(f"title must be non-empty text, got {title!r}")
    if isinstance(results, Results):
        name = results.settings.get("model")
        sources = [Source(name=name if isinstance(name, str) else "results", result=results)]
    elif isinstance(results, (str, Path)):
        sources = find_sources(results)
    else:
        sources = list(results)
    colors = {s.color for source in sources if source.result for s in line_styles(source.result.records).values()}
    environment = Environment(
        loader=PackageLoader("aihwkit_nabn.reporting.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        title=title or TITLE,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        light=color_variables(colors | {"#777777"}, LIGHT),
        dark=color_variables(colors | {"#777777"}, DARK),
        sections=[_section(source, f"r{index}") for index, source in enumerate(sources)],
        glossary=GLOSSARY,
    )
    write_text(path, text)
    return path


def _section(source: Source, salt: str) -> dict[str, Any]:
    section: dict[str, Any] = {"id": salt, "name": source.name, "result": None, "sensitivity": None, "examples": None}
    if source.folder is not None:
        section["sensitivity"] = find_sensitivity(source.folder)
        section["examples"] = find_examples(source.folder)
    result = source.result
    if result is not None:
        section["result"] = _evaluation(result, salt)
    return section


def _evaluation(result: Results, salt: str) -> dict[str, Any]:
    main = result.metric_name()
    names = {record.method: record.method_name for record in result.records}
    pictures, shift_tables = shift_pictures(result, salt)
    return {
        "metric": main,
        "chips": result.n_chips,
        "summary": summarize(result),
        "legend": legend(result, salt),
        "pictures": accuracy_pictures(result, main, salt),
        "overview": tables.by_method(result, main),
        "recovered": tables.recovered(result, main),
        "prices": tables.prices(result),
        "metrics": tables.every_metric(result),
        "missing": missing_note(result) if result.missing else "",
        "classes": tables.class_by_class(result, main),
        "shifts": pictures,
        "shift_tables": shift_tables,
        "methods": [(label, METHODS.get(name, "")) for label, name in names.items()],
        "made": _made(result.settings),
        "scenarios": [_scenario(entry) for entry in result.settings.get("scenarios", [])],
        "conversion": _conversion(result.settings.get("conversion", {})),
    }


def _made(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the run was made with, in the order people ask for it."""
    rows: list[tuple[str, Any]] = [
        (name, settings[name]) for name in ("command", "date", "model", "device", "seed", "chips") if name in settings
    ]
    rows += [(f"{package} version", version) for package, version in settings.get("versions", {}).items()]
    if settings.get("max_samples") is not None:
        rows.append(("calibration images at most", settings["max_samples"]))
    if settings.get("exclude"):
        rows.append(("kept digital on request", ", ".join(map(str, settings["exclude"]))))
    for method in settings.get("methods", []):
        options = ", ".join(f"{key} = {value}" for key, value in (method.get("options") or {}).items())
        if options:
            rows.append((f"options of {method.get('label')}", options))
    return [(name, str(value)) for name, value in rows]


def _scenario(entry: dict[str, Any]) -> tuple[str, str]:
    seconds = entry.get("t_inference", 0.0)
    head = f"# {format_time(seconds)} after programming\n" if seconds else "# right after programming\n"
    return str(entry.get("name", "")), head + str(entry.get("rpu_config", ""))


def _conversion(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Return what lies on tiles, once where all scenarios have the same."""
    if len(set(texts.values())) == 1:
        return [("all settings", next(iter(texts.values())))]
    return [(str(name), str(text)) for name, text in texts.items()]
