"""The compiled library: finding it, checking that it fits, running its functions on the threads of torch's pool."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LIBRARY = Path(__file__).parent / ("libnabn.dll" if sys.platform == "win32" else "libnabn.so")

# The structure that each function takes a pointer to; FUNCTION_size says how large the library takes it to be.
_ARGUMENTS: dict[str, type[ctypes.Structure]] = {}


def declare(function: str, *fields: tuple[Any, str]) -> None:
    """Declare the structure that a function takes a pointer to, as C does: types, each with the names of its fields.

    At the end stands the share of the work that no thread has taken yet.
    """
    members = [(name, kind) for kind, names in fields for name in names.split()]
    _ARGUMENTS[function] = type(function, (ctypes.Structure,), {"_fields_": [*members, ("next", ctypes.c_longlong)]})


def is_available() -> bool:
    """Whether the compiled library is there and not switched off."""
    return os.environ.get("NABN_NATIVE", "1") != "0" and _library() is not None


def why_not() -> str:
    """Return why the compiled library is not used; empty if it is."""
    if os.environ.get("NABN_NATIVE", "1") == "0":
        return "switched off by NABN_NATIVE=0"
    if _library() is not None:
        return ""
    return f"{LIBRARY.name} does not fit this system" if LIBRARY.is_file() else "no C compiler when it was installed"


def is_parallel() -> bool:
    """Whether it runs on more than one thread: torch brings its OpenMP library along."""
    return _parallel() is not None


def run(function: str, n_shares: int, **fields: Any) -> None:
    """Run a function of the library, on as many of torch's threads as there are shares of work for.

    In the fields of its structure a tensor stands for the address of its values; what is not given is 0 or NULL.
    """
    given = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in fields.items()}
    arguments, compiled = ctypes.byref(_ARGUMENTS[function](**given)), getattr(_library(), function)
    n_threads = min(torch.get_num_threads(), n_shares)
    parallel = _parallel() if n_threads > 1 else None
    if parallel is None:
        compiled(arguments)
    else:
        parallel(compiled, arguments, n_threads, 0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for function, arguments in _ARGUMENTS.items():
            getattr(library, function).restype = None
            size = getattr(library, f"{function}_size")
            size.restype = ctypes.c_int64
            if size() != ctypes.sizeof(arguments):
                return None
    except (OSError, AttributeError):
        return None
    return library


@functools.cache
def _parallel() -> Any:
    """Return the function of torch's own OpenMP library that runs another one on several threads, or None."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            function = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
