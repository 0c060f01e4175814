"""Lets Python find this folder as `mmcv._ext` wherever mmcv has no compiled one.

The wheel holds a copy of this file as the module `_aihwkit_nabn_mmcv`, which a ``.pth`` file beside it imports whenever
Python starts. So it imports nothing but `sys`, and does nothing until somebody asks for `mmcv._ext`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, which takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

NAME = "mmcv._ext"


class MMCVOperatorsFinder:
    """An entry of `sys.meta_path`."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where `mmcv._ext` is to be loaded from: the compiled one if there is one, else this folder."""
        if name != NAME:
            return None
        for finder in sys.meta_path:
            find = None if finder is cls else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None and spec.loader is not None:
                loader: Any = ExplainingLoader(spec.loader)
                spec.loader = loader
                return spec
        import os
        from importlib.util import find_spec, spec_from_file_location

        package = find_spec("aihwkit_nabn")
        folders = list(package.submodule_search_locations or ()) if package else []
        if not folders:
            return None
        folder = f"{folders[0]}/openmmlab/operators"
        if not os.path.isfile(f"{folder}/__init__.py"):  # a checkout that has been moved, an archive
            return None
        return spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])


class ExplainingLoader:
    """The loader of a compiled `mmcv._ext`; adds to its errors what to do about them.

    Args:
        loader: What loads the library.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Load the library."""
        return _explained(self._loader.create_module, spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run its initialisation."""
        _explained(self._loader.exec_module, module)


_warned: dict[Any, Any] = {}


def _explained(step: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return step(argument)
    except ImportError as error:
        import warnings

        try:
            from aihwkit_nabn.stacks import compile_mmcv, drop_mmcv_operators
        except ImportError:
            raise error from None
        error.msg = (
            f"{error.msg} (mmcv's compiled operators cannot be loaded. Compile them again for this torch: "
            f"{compile_mmcv()} -- or delete them, and torchvision's serve: {drop_mmcv_operators()})"
        )
        # mmdetection catches the error in some places, and asks again and again.
        warnings.warn_explicit(error.msg, UserWarning, NAME, 0, registry=_warned)
        raise


def install() -> None:
    """Put the finder where Python looks first; once, whichever copy of this file comes first."""
    if not any(getattr(entry, "__name__", "") == MMCVOperatorsFinder.__name__ for entry in sys.meta_path):
        sys.meta_path.insert(0, MMCVOperatorsFinder)


install()
