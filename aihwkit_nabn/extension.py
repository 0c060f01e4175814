"""The user's own modules, which register noise models, calibration methods or workloads."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from aihwkit_nabn.errors import NabnError


def import_extension(source: str) -> None:
    """Import a Python file, or a module by name; nothing happens where it is imported already.

    Raises:
        NabnError: there is no such file or module, or importing it fails.
    """
    try:
        if source.endswith(".py"):
            _import_file(Path(source))
        else:
            importlib.import_module(source)
    except NabnError:
        raise
    except Exception as error:  # the user's own code: anything
        raise NabnError(f"cannot import {source}: {type(error).__name__}: {error}") from error


def contents_of(source: str) -> str:
    """Return a checksum of what `import_extension` imported from there, of one file."""
    file = Path(source) if source.endswith(".py") else Path(str(sys.modules[source].__file__))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise NabnError(f"cannot import {path}: no such file")
    name = f"nabn_extension_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and Path(str(known.__file__)) == path.resolve():
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise NabnError(f"cannot import {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
