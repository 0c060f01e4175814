"""What a report is made from: result files, and the files beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import parse_json
from aihwkit_nabn.results import Results

RESULTS = "results.json"
SENSITIVITY = "sensitivity.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One section of the report.

    Attributes:
        name: How the section is called.
        result: The evaluation.
        folder: Where files beside the result are looked for; None: nowhere.
    """

    name: str
    result: Results | None
    folder: Path | None = field(default=None)


def find_sources(path: str | Path) -> list[Source]:
    """Return one source per result file at or below `path`; copies of one file count once.

    A folder with a ``sensitivity.json`` alone is a source too.

    Args:
        path: A ``results.json``, or a folder with such files at any depth.

    Raises:
        NabnError: there is nothing of the kind, or a file is damaged.
    """
    path = Path(path)
    if path.is_file():
        return [_source(path, path.parent)]
    if not path.is_dir():
        raise NabnError(f"RESULTS must be a {RESULTS} or a folder that holds some, got {str(path)!r}: no such file")
    # The shortest path first: mmengine's log folder below it may hold the same file once more.
    found = sorted(path.rglob(RESULTS), key=lambda file: (len(file.parts), str(file)))
    contents: set[bytes] = set()
    sources = []
    for file in found:
        content = file.read_bytes()
        if content not in contents:
            contents.add(content)
            sources.append(_source(file, path))
    folders = {source.folder for source in sources}
    for file in sorted(path.rglob(SENSITIVITY)):  # measured alone, without an evaluation beside it
        if file.parent not in folders:
            name = str(file.parent.relative_to(path)) if file.parent != path else file.parent.name or "sensitivity"
            sources.append(Source(name=name, result=None, folder=file.parent))
    if not sources:
        raise NabnError(f"{path} has no {RESULTS}, neither in it nor below; nabn demo and nabn test write one")
    return sources


def _source(file: Path, root: Path) -> Source:
    result = Results.from_json(file)
    below = file.parent.relative_to(root)
    model = result.settings.get("model")
    parts = [str(below) if below.parts else "", model if isinstance(model, str) else ""]
    name = ": ".join(part for part in parts if part) or file.parent.name or "results"
    return Source(name=name, result=result, folder=file.parent)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file beside a result, or None where there is none.

    Raises:
        NabnError: the file is damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise NabnError(f"{path} is damaged: {error}") from error
