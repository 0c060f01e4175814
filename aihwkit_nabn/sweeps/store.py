"""The records of a sweep on disk: appended one by one, whole or not at all, whatever ends the process."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from aihwkit_nabn.errors import NabnError, is_finite_number
from aihwkit_nabn.files import parse_json
from aihwkit_nabn.sweeps.record import SweepRecord

FORMAT = "aihwkit_nabn.sweep"
VERSION = 1


class RecordStore:
    """JSON lines; the first says which sweep they are of, each other one is a record or a note.

    A line is written in one step and pushed to the disk before `add` returns. What a killed process left of a line is
    cut off when the file is opened again. One process at a time may have it open.

    Args:
        path: The file; made if missing.
        sweep: The sweep as plain values: records of another one do not belong here.

    Raises:
        NabnError: the file is of another sweep (the field that differs is named), damaged, in use, or cannot be
            written.
    """

    def __init__(self, path: Path, sweep: dict[str, Any]) -> None:
        self.path = path
        self.records: dict[str, SweepRecord] = {}
        self.notes: dict[str, Any] = {}
        self._sweep: dict[str, Any] = json.loads(json.dumps(sweep))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise NabnError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def add(self, record: SweepRecord) -> bool:
        """Keep a record; return whether it is new.

        Raises:
            NabnError: it cannot be written.
        """
        if record.key in self.records:
            return False
        self._write({"record": dataclasses.asdict(record)})
        self.records[record.key] = record
        return True

    def note(self, name: str, value: Any) -> None:
        """Keep something else by name, once.

        Raises:
            NabnError: it cannot be written.
        """
        if name not in self.notes:
            self._write({"note": name, "value": value})
            self.notes[name] = value

    def sorted_records(self) -> list[SweepRecord]:
        """Return the records by key, the same list for the same records."""
        return [self.records[key] for key in sorted(self.records)]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> RecordStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NabnError(
                f"{self.path} is being written by another process; wait for it, or use another --out"
            ) from error
        except OSError:  # a file system without locks
            pass

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if lines:
            self._check_header(lines[0])
        for number, line in enumerate(lines[1:], start=2):
            entry = _read_entry(self.path, number, line)
            if isinstance(entry, SweepRecord):
                self.records[entry.key] = entry
            else:
                self.notes[entry[0]] = entry[1]
        if whole < len(content):  # cut off in the middle of a write
            self._file.truncate(whole)
        if not lines:
            self._write({"format": FORMAT, "version": VERSION, "sweep": self._sweep})

    def _check_header(self, line: bytes) -> None:
        try:
            header = parse_json(line)
            found, version, old = header["format"], header["version"], header["sweep"]
        except (ValueError, TypeError, KeyError) as error:
            raise NabnError(f"{self.path} is no record file of a sweep; use another --out") from error
        if found != FORMAT or version != VERSION or not isinstance(old, dict):
            raise NabnError(f"{self.path} is no record file of version {VERSION} of a sweep; use another --out")
        where, before, now = _difference("", old, self._sweep)
        if where:
            raise NabnError(
                f"{self.path} holds records of another sweep: {where} was {_text(before)}, and is {_text(now)}; "
                f"use the same, or another --out"
            )

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)  # a full disk may have taken half of it
                raise
        except OSError as error:
            raise NabnError(f"cannot write {self.path}: {error.strerror or error}") from error


def _read_entry(path: Path, number: int, line: bytes) -> SweepRecord | tuple[str, Any]:
    """Return the record or the note, with its name, of a line."""
    try:
        entry = parse_json(line)
        if "note" in entry:
            return str(entry["note"]), entry["value"]
        record = SweepRecord(**entry["record"])
        numbers = record.metrics.values()
        if not numbers or not all(is_finite_number(value) for value in numbers):
            raise ValueError("metrics must be numbers")
        hash(record.key)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NabnError(f"{path} is damaged in line {number}; take that line out, or use another --out") from error
    return record


_MISSING = object()


def _difference(where: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Return the first field in which two descriptions differ and its two values; an empty name where none does."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            found = _difference(f"{where}.{key}" if where else str(key), old.get(key, _MISSING), new.get(key, _MISSING))
            if found[0]:
                return found
        return "", None, None
    return ("", None, None) if old == new else (where, old, new)


def _text(value: Any) -> str:
    text = "missing" if value is _MISSING else json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def finished_keys(path: Path) -> set[str]:
    """Return the keys of the whole records in a file, without opening it for writing; none where there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")[1:-1]
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise NabnError(f"cannot read {path}: {error.strerror or error}") from error
    entries = [_read_entry(path, number, line) for number, line in enumerate(lines, start=2)]
    return {entry.key for entry in entries if isinstance(entry, SweepRecord)}
