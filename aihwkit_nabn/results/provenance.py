"""How a result came about: versions, date, and the command line without this machine's folders."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aihwkit_nabn._version import __version__


def provenance() -> dict[str, Any]:
    """Return command line, date and versions."""
    return {
        "command": command_line(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions("aihwkit", "torch", "numpy"),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of this package, of others, and of Python."""
    found = {name: _version(name) for name in packages}
    return {"aihwkit_nabn": __version__, **found, "python": platform.python_version()}


def command_line() -> str:
    """Return the process's command line as text to read and to repeat, without this machine's folders.

    Of absolute paths only the last part stays.
    """
    program, *arguments = sys.argv or [""]
    shown = [re.sub(r"(?:^|(?<==))/(?:[^/]+/)*(?=[^/]+/?$)", "", text) for text in arguments]
    return shlex.join([Path(program).name or "python", *shown])


def plain(value: object) -> Any:
    """Return the value as JSON would give it back, or its text where JSON has no such thing."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
