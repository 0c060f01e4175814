"""What to install where a config names a package that is not installed."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator

from aihwkit_nabn.errors import MissingDependencyError, NabnError

# Where a distribution is called otherwise than its module. onedl-mmpretrain 1.3.6 asks for a distribution modelindex,
# which is empty; the module of the name is model-index's.
INSTALL = {
    "mmpretrain": "onedl-mmpretrain model-index",
    "modelindex": "model-index",
    **dict.fromkeys(("mmengine", "mmcv", "mmdet", "mmseg"), "'aihwkit-nabn[openmmlab]'"),
    "timm": "timm",
}
# mmengine's and mmdet's words for it, where no import failed: a type's scope, a base's, a class without its package.
_WORDS = (
    re.compile(r"\b([A-Za-z_]\w*)(?:\.\w+)+ is not in the .* registry"),
    re.compile(r"\b(\w+) is not installed\b"),
    re.compile(r"mim install (\w+)"),
    re.compile(r"installed path for (\w+)"),
)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what to install if something inside fails because a package is missing; other errors stay what they are.

    Raises:
        MissingDependencyError: a package is missing.
    """
    try:
        yield
    except NabnError:
        raise
    except Exception as error:  # a config is a program
        missing = missing_module(error)
        if missing is None:
            raise
        package = missing.partition(".")[0]
        advice = (
            f"run: pip install {INSTALL[package]}"
            if package in INSTALL
            else "install it, or add the folder that holds it to PYTHONPATH"
        )
        raise MissingDependencyError(f"{what} needs {missing}, which is not installed; {advice}") from error


def chain(error: BaseException) -> list[BaseException]:
    """Return an error and those that led to it, the first cause last."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        following = following.__cause__ or following.__context__
    return found


def missing_module(error: BaseException) -> str | None:
    """Return the package or module whose absence led to an error, None if that was not the reason."""
    errors = chain(error)
    for cause in reversed(errors):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            package = cause.name.partition(".")[0]
            return cause.name if _is_there(package) else package
    for cause in errors:
        for words in _WORDS:
            found = words.search(str(cause))
            if found and not _is_there(found[1]):
                return found[1]
    return None


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # half imported, or made by hand
        return True
