"""What stands in a log, whoever is writing it and whatever it was made with."""

import json
from pathlib import Path

from aihwkit_nabn.results.storage import read_record


def finished_keys(path: Path) -> set[str]:
    """Return the keys of the whole records; none where there is no file."""
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    entries = [entry["record"] for entry in map(json.loads, lines) if "record" in entry]
    return {read_record(path, "", entry).key for entry in entries}
