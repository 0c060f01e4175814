"""Results as JSON files: versioned, written in one step, checked when read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError, is_finite_number, suggestion
from aihwkit_nabn.files import parse_json, write_text
from aihwkit_nabn.results import version_0_1
from aihwkit_nabn.results.record import Record

FORMAT = "aihwkit_nabn.evaluation"
VERSION = 1

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "dict[str, float]": (dict,),
    "dict[str, Any]": (dict,),
}


def write_result(path: Path, *, digital: dict[str, float], records: Sequence[Record], settings: dict[str, Any]) -> Path:
    """Write the parts of a result to `path`, making the folder if need be.

    Raises:
        NabnError: the file cannot be written, or the settings hold something that JSON has not.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "digital": digital,
        "records": [record.to_dict() for record in records],
        "settings": settings,
    }
    try:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise NabnError(f"result cannot be written as JSON: {error}") from error
    write_text(path, text + "\n")
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read what `write_result` wrote and return its keyword arguments.

    Raises:
        NabnError: no such file, or one that is damaged, of something else, or of a newer version.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NabnError(f"no result file {path}") from error
    except OSError as error:
        raise NabnError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # both no JSON and no UTF-8
        raise NabnError(f"{path} is damaged, or no result file: {error}") from error
    if isinstance(content, dict) and content.get("format") == version_0_1.SENSITIVITY:
        content = {"format": FORMAT, "version": content.get("version"), **version_0_1.sensitivity(path, content)}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise NabnError(f"{path} is no result file of this package: its format is not {FORMAT!r}")
    version = content.get("version")
    if version != VERSION:
        raise NabnError(f"{path} has version {version!r} of the format; this release reads version {VERSION}")
    _check_keys(path, "the file", content, ["format", "version", "digital", "records", "settings"])
    if not isinstance(content["records"], list) or not isinstance(content["settings"], dict):
        raise NabnError(f"{path} is damaged: records must be a list and settings a mapping")
    digital = read_metrics(path, "digital", content["digital"])
    records = [_record(path, index, entry, digital) for index, entry in enumerate(content["records"])]
    return {"digital": digital, "records": records, "settings": content["settings"]}


def _record(path: Path, index: int, entry: Any, digital: dict[str, float]) -> Record:
    where = f"record {index}"
    record = read_record(path, where, entry)
    if set(record.metrics) != set(digital):
        raise NabnError(f"{path} is damaged: {where} has the metrics {sorted(record.metrics)}, not {sorted(digital)}")
    return record


def read_record(path: Path, where: str, entry: Any) -> Record:
    """Return a measurement from JSON values that stood somewhere in a file.

    Raises:
        NabnError: it is no measurement.
    """
    fields = {field.name: _KINDS[str(field.type)] for field in dataclasses.fields(Record)}
    if not isinstance(entry, dict):
        raise NabnError(f"{path} is damaged: {where} must be a mapping")
    entry = {"note": "", "axes": {}, **entry}  # files of before there were any
    _check_keys(path, where, entry, list(fields))
    for name, kinds in fields.items():
        if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
            raise NabnError(f"{path} is damaged: {name} of {where} must not be {entry[name]!r}")
    return Record(**{**entry, "metrics": read_metrics(path, where, entry["metrics"])})


def read_metrics(path: Path, where: str, metrics: Any) -> dict[str, float]:
    """Return the metrics that a file held, as `read_record` does.

    Raises:
        NabnError: there is none, or one that is no finite number.
    """
    numbers = metrics.values() if isinstance(metrics, dict) else []
    if not numbers or not all(is_finite_number(value) for value in numbers):
        raise NabnError(f"{path} is damaged: the metrics of {where} must be finite numbers, got {metrics!r}")
    return {name: float(value) for name, value in metrics.items()}


def _check_keys(path: Path, where: str, entry: dict[str, Any], known: list[str]) -> None:
    for key in entry:
        if key not in known:
            raise NabnError(f"{path} is damaged: {where} has the unknown key {key!r}{suggestion(key, known)}")
    for key in known:
        if key not in entry:
            raise NabnError(f"{path} is damaged: {where} lacks {key!r}")
