"""Modules of the user's own: those that register something, and those with a function to call."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from aihwkit_nabn.errors import NabnError, suggestion

# What the code in each folder has imported of that folder, by name. Two folders may both have a `utils`.
_BROUGHT: dict[Path, dict[str, ModuleType]] = {}
_NOT_THE_USERS = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))


def import_extension(source: str) -> ModuleType:
    """Import a Python file, or a module by name, and return it; nothing is run where it is imported already.

    A file can import the files beside it, and where its folder is a package also relatively to that. A module may lie
    in the working directory.

    Raises:
        NabnError: there is no such file or module, or importing it fails; then with the user's file and line.
    """
    return _imported(source)[0]


class UserObject:
    """A function, class or object in a module of the user's.

    Args:
        text: ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``.

    Attributes:
        found: The object.

    Raises:
        NabnError: there is no such file, module or name, or importing it fails.
    """

    def __init__(self, text: str) -> None:
        source, _, name = text.rpartition(":")
        self.text = text
        self._module, self._folder = _imported(source)
        if not hasattr(self._module, name):
            own = [known for known in vars(self._module) if not known.startswith("_")]
            raise NabnError(f"{source} has no {name!r}{suggestion(name, own)}")
        self.found: Any = getattr(self._module, name)

    def __call__(self, **arguments: Any) -> Any:
        """Call the object.

        Raises:
            NabnError: it failed; with the user's file and line.
        """
        with _at_home(self._folder), _told_where(f"{self.text} failed"):
            return self.found(**arguments)

    def digest(self) -> str:
        """Return a checksum of the module's file and of the files beside it that it imports."""
        return _digest(self._module, self._folder)


def contents_of(source: str) -> str:
    """Return the same of what `import_extension` imports."""
    return _digest(*_imported(source))


def _digest(first: ModuleType, folder: Path) -> str:
    brought, waiting = _BROUGHT[folder], [first]
    files: dict[str, bytes] = {}
    while waiting:
        module = waiting.pop()
        file = getattr(module, "__file__", None)
        if module.__name__ not in files:
            files[module.__name__] = Path(file).read_bytes() if file else b""
            names = {getattr(value, "__module__", None) for value in vars(module).values()}
            names |= {value.__name__ for value in vars(module).values() if isinstance(value, ModuleType)}
            waiting += [other for name, other in brought.items() if name in names]
    return hashlib.sha256(b"".join(content for _, content in sorted(files.items()))).hexdigest()[:16]


def is_module(name: str) -> bool:
    """Whether a text could name a module: a dotted name, or one that can be imported."""
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    if "." in name:
        return True
    with _at_home(Path.cwd()):
        return importlib.util.find_spec(name) is not None


def place_of(error: BaseException) -> str:
    """Return where in the user's own files an error was raised, as ``" (FILE, line N)"``, or an empty string."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*_NOT_THE_USERS, "<")) and "site-packages" not in frame.filename:
            path = Path(frame.filename)
            shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            return f" ({shown}, line {frame.lineno})"
    return ""


def _imported(source: str) -> tuple[ModuleType, Path]:
    """Return a module, and the folder that was on Python's path for it."""
    if source.endswith(".py"):
        path = Path(source).resolve()
        if not path.is_file():
            raise NabnError(f"cannot import {source}: no such file{suggestion(path.name, _python_files(path.parent))}")
        package, folder = _package_of(path)
    else:
        path, package, folder = None, "", Path.cwd()
    with _at_home(folder), _told_where(f"cannot import {source}"):
        module = _module_by_name(source) if path is None else _module_of_file(package, path)
        if path is not None and Path(str(module.__file__)).resolve() != path:
            raise NabnError(f"cannot import {source}: Python has another {module.__name__}, {module.__file__}")
        return module, folder


def _module_of_file(package: str, path: Path) -> ModuleType:
    importlib.import_module(package)
    name = f"{package}.{path.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _package_of(path: Path) -> tuple[str, Path]:
    """Return the package that a file belongs to, and the folder in which Python finds that package.

    A file outside a package gets one made for its folder, so that it can import its neighbours relatively, and so that
    files of one name in two folders are two modules.
    """
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    if names:
        return ".".join(names), folder
    name = f"nabn_extension_{zlib.crc32(str(folder).encode()):08x}"  # the same in every process
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    return name, folder


def _module_by_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if not f"{name}.".startswith(f"{missing}."):
            raise  # another one that it imports
        above = sys.modules.get(missing.rpartition(".")[0])
        near = [module.name for module in pkgutil.iter_modules([str(Path.cwd())] if above is None else above.__path__)]
        hint = suggestion(missing.rpartition(".")[2], near)
        raise NabnError(f"cannot import {name}: no module {missing!r} is installed or in this folder{hint}") from error


def _python_files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.py")]


@contextlib.contextmanager
def _at_home(folder: Path) -> Iterator[None]:
    """Let code import what lies in a folder, whichever modules of the same names other folders have brought."""
    others = {
        name: module
        for where, brought in _BROUGHT.items()
        if where != folder
        for name, module in brought.items()
        if sys.modules.get(name) is module
    }
    for name in others:
        del sys.modules[name]
    own = _BROUGHT.setdefault(folder, {})
    sys.modules.update(own)
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        own.update({name: m for name, m in sys.modules.items() if name not in before and _lies_in(m, folder)})
        sys.modules.update(others)


def _lies_in(module: object, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", ()))  # a folder without __init__.py has no file
    return any(Path(place).is_relative_to(folder) and "site-packages" not in place for place in places)


@contextlib.contextmanager
def _told_where(what: str) -> Iterator[None]:
    try:
        yield
    except NabnError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code: anything
        raise NabnError(f"{what}: {type(error).__name__}: {error}{place_of(error)}") from error
