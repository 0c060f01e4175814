"""Measurements of a long evaluation, kept as they come, so that an interrupted run can go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from aihwkit_nabn.chip.container import checksum
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.record import Record
from aihwkit_nabn.evaluation.storage import read_metrics, read_record
from aihwkit_nabn.files import append_line, parse_json, read_lines, write_text


class RecordFile:
    """Measurements as JSON lines, kept as they come; the first line says what they were made with.

    Args:
        path: The file; None keeps them in memory only, as all but one process of a distributed run do.
        setup: What must be the same for measurements to belong together.
        resume: Take in what is there; otherwise begin anew, an old file being kept as ``NAME.old``.

    Attributes:
        digital: Metrics of the digital model, empty until they are there.
        records: The measurements.
        settings: Those of results, one for each scenario.
        conversions: By scenario, what is on tiles.
        shifts: By scenario and method, what calibrating the first chip changed.

    Raises:
        NabnError: the file is of another set-up, or damaged.
    """

    def __init__(self, path: Path | None, setup: dict[str, Any], *, resume: bool) -> None:
        self.path = path or Path("memory")
        self._in_memory = path is None
        self.digital: dict[str, float] = {}
        self.settings: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.conversions: dict[str, str] = {}
        self.shifts: dict[str, dict[str, list[dict[str, Any]]]] = {}
        kept = [json.dumps({"setup": setup})]
        if path is None:
            return
        if path.is_file() and not resume:
            path.replace(path.with_name(f"{path.name}.old"))
        elif path.is_file():
            kept += self._read(read_lines(path), setup)
        write_text(path, "".join(f"{line}\n" for line in kept))

    def _read(self, lines: list[str], setup: dict[str, Any]) -> list[str]:
        """Take in the lines after the first and return those that are whole."""
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = parse_json(line)
                if number == 1:
                    _check_setup(self.path, entry["setup"], setup)
                else:
                    self._take(entry, f"line {number}")
                    kept.append(line)
            except NabnError:
                raise
            except (ValueError, TypeError, KeyError) as error:
                if number > 1 and number == len(lines) and isinstance(error, ValueError):
                    break  # cut off in the middle of a write
                raise NabnError(f"{self.path} is damaged in line {number}; run without --resume") from error
        return kept

    def _take(self, entry: dict[str, Any], where: str = "") -> None:
        if "record" in entry:
            record = read_record(self.path, f"the record of {where}", entry["record"])
            self.records.append(record)
            if "shifts" in entry:
                if not all(isinstance(part, dict) for part in entry["shifts"]):
                    raise TypeError("shifts must be mappings")
                self.shifts.setdefault(record.scenario, {})[record.method] = entry["shifts"]
        if "conversion" in entry:
            if not isinstance(entry["conversion"], str):
                raise TypeError("a conversion must be text")
            self.conversions[entry["scenario"]] = entry["conversion"]
        if "settings" in entry:
            if not all(isinstance(part, dict) for part in (entry["settings"], entry["settings"]["conversion"])):
                raise TypeError("settings must be a mapping")
            self.settings.append(entry["settings"])
        if "digital" in entry:
            self.digital = read_metrics(self.path, where, entry["digital"])

    def add(self, **entry: Any) -> None:
        """Append an entry, whose keys are those that `_take` knows: ``record=...``, ``digital=...`` and so on.

        Raises:
            NabnError: it cannot be written.
        """
        if not self._in_memory:
            append_line(self.path, json.dumps(entry))
        self._take(entry)

    def adder(self, known: set[str]) -> Callable[[Record], None]:
        """Return an ``on_record`` for `evaluate` that adds the records of all methods but these."""

        def add(record: Record) -> None:
            if record.method not in known:
                self.add(record=asdict(record))

        return add

    def done(self, scenario: str, chip_seed: int) -> set[str]:
        """Return the labels of the methods that were measured on a chip."""
        return {r.method for r in self.records if (r.scenario, r.chip_seed) == (scenario, chip_seed)}

    def describes(self, scenario: str) -> bool:
        """Return whether the settings of a scenario are there: they come after its first chip's measurements."""
        return any(scenario in settings["conversion"] for settings in self.settings)


def setup_of(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return what decides whether measurements belong together: the network, weights included, and what was set.

    Args:
        model: The digital network.
        options: By name, what else must be the same.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    plain = json.loads(json.dumps(options, default=str))
    return {"model": f"{type(model).__name__} {checksum('', tensors)[:16]}", **plain}


def _check_setup(path: Path, old: object, new: dict[str, Any]) -> None:
    if not isinstance(old, dict):
        raise TypeError("the set-up must be a mapping")
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            raise NabnError(
                f"{path} was made with {key} = {old.get(key)!r}, not {new.get(key)!r}; "
                f"run with the same, or without --resume, or with another --out"
            )
