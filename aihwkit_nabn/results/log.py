"""Measurements of a long run, kept as they come, so that an interrupted run can go on."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.files import parse_json
from aihwkit_nabn.results import version_0_1
from aihwkit_nabn.results.record import DIGITAL, Record
from aihwkit_nabn.results.storage import read_metrics, read_record

FORMAT = "aihwkit_nabn.records"
VERSION = 1


class RecordLog:
    """JSON lines: the first says what the measurements were made with, each other one is a record or a note.

    A line is written in one step and pushed to the disk before `add` returns. What a killed process left of a line is
    cut off when the file is opened again. One process at a time may have it open. Logs of version 0.1 are read too.

    Args:
        path: The file; made if missing. None: measurements are kept in memory only.
        setup: What must be the same for measurements to belong together, as plain values.
        resume: Take in what is there; otherwise begin anew, an old file being kept as ``NAME.old``, ``NAME.old2``, ...
        mend: What a user can do about a file of another set-up, for messages.
        named: What a user calls a field of `setup`, for messages.
        rank: Of this process in a distributed run: all but the first read what is there, write nothing, and keep
            measurements in memory only.
        broadcast: Returns the first process's object in all of them.

    Attributes:
        records: By key, in the order in which they came.
        notes: What else was kept, by name.

    Raises:
        NabnError: the file is of another set-up (the field that differs is named), damaged, in use, or cannot be
            written.
    """

    def __init__(
        self,
        path: Path | None,
        setup: dict[str, Any],
        *,
        resume: bool = True,
        mend: str = "run with the same, or without --resume, or with another --out",
        named: Mapping[str, str] = MappingProxyType({}),
        rank: int = 0,
        broadcast: Callable[[Any], Any] | None = None,
    ) -> None:
        self.path = path or Path("records")
        self.records: dict[str, Record] = {}
        self.notes: dict[str, Any] = {}
        self._setup: dict[str, Any] = json.loads(json.dumps(setup, default=str))
        self._mend, self._named = mend, named
        self._file: BinaryIO | None = None
        if path is None:
            pass
        elif rank == 0:
            self._file = self._open()
            try:
                if not resume and path.stat().st_size:
                    self.close()
                    path.replace(_unused(path.with_name(f"{path.name}.old")))
                    self._file = self._open()
                self._file.seek(0)
                self._take(self._file.read())
            except BaseException:
                self.close()
                raise
        elif broadcast is None and path.is_file():
            self._take(path.read_bytes())
        if broadcast is not None:
            self.records, self.notes = broadcast((self.records, self.notes))

    def add(self, record: Record) -> bool:
        """Keep a record; return whether it is new.

        Raises:
            NabnError: it cannot be written.
        """
        if record.key in self.records:
            return False
        self._write({"record": record.to_dict()})
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

    def agree(self, name: str, value: Any) -> None:
        """Keep a note that must be the same whenever the log is gone on with; a log without it takes any.

        Raises:
            NabnError: it is another one.
        """
        old = self.notes.get(name, value)
        if old != value:
            self.close()
            raise NabnError(f"{self.path} was made with {name} = {_text(old)}, not {_text(value)}; {self._mend}")
        self.note(name, value)

    def sorted_records(self) -> list[Record]:
        """Return the records by key, the same list for the same records."""
        return [self.records[key] for key in sorted(self.records)]

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise NabnError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise NabnError(
                f"{self.path} is being written by another process; wait for it, or use another --out"
            ) from error
        except OSError:  # a file system without locks
            pass
        return file

    def _take(self, content: bytes) -> None:
        """Take in what the file holds."""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if lines:
            self._check_setup(lines[0])
        for number, line in enumerate(lines[1:], start=2):
            self._take_line(number, line)
        if self._file is not None and whole < len(content):  # cut off in the middle of a write
            self._file.truncate(whole)
        if not lines:
            self._write({"format": FORMAT, "version": VERSION, "setup": self._setup})

    def _take_line(self, number: int, line: bytes) -> None:
        where = f"line {number}"
        try:
            for entry in version_0_1.entries(parse_json(line)):
                if "note" in entry:
                    self.notes[str(entry["note"])] = _checked(self.path, where, str(entry["note"]), entry["value"])
                else:
                    record = read_record(self.path, where, entry["record"])
                    self.records[record.key] = record
        except (NabnError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f" ({error})" if isinstance(error, NabnError) else ""
            raise NabnError(
                f"{self.path} is damaged in {where}; take that line out, or use another --out{reason}"
            ) from error

    def _check_setup(self, line: bytes) -> None:
        try:
            header = parse_json(line)
            known = (header.get("format"), header.get("version")) == (FORMAT, VERSION)
            old = header["setup"] if known else version_0_1.setup_in(header)
        except (ValueError, AttributeError, KeyError):
            old = None
        if not isinstance(old, dict):
            raise NabnError(f"{self.path} is no log of measurements, or damaged in line 1; {self._mend}")
        where, before, now = _difference("", old, self._setup)
        if where:
            where = self._named.get(where, where)
            raise NabnError(f"{self.path} was made with {where} = {_text(before)}, not {_text(now)}; {self._mend}")

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        try:
            end = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(self._file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(end)  # a full disk may have taken half of it
                raise
        except OSError as error:
            reason = error.strerror or error
            raise NabnError(f"cannot write {self.path}: {reason}; what it holds already stays") from error


def _unused(path: Path) -> Path:
    """Return the path, with a number at its end if there is such a file."""
    others = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not each.exists())


def _checked(path: Path, where: str, name: str, value: Any) -> Any:
    """Return a note's value if it is of the form that all notes of its kind, the first word of their names, have."""
    kind = name.partition(" ")[0]
    if kind == DIGITAL:
        return read_metrics(path, where, value)
    whole = {
        "conversion": lambda: isinstance(value, str),
        "shifts": lambda: isinstance(value, list) and all(isinstance(part, dict) for part in value),
        "settings": lambda: isinstance(value["scenarios"], list) and isinstance(value["conversion"], dict),
    }
    if kind in whole and not whole[kind]():
        raise TypeError(f"no {kind}")
    return value


def _difference(where: str, old: Any, new: Any) -> tuple[str, Any, Any]:
    """Return the first field in which two set-ups differ and its values, missing being None; an empty name if none."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            found = _difference(f"{where}.{key}" if where else str(key), old.get(key), new.get(key))
            if found[0]:
                return found
        return "", None, None
    return ("", None, None) if old == new else (where, old, new)


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
