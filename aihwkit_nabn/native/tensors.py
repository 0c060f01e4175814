"""Which tensors compiled code may work on, and whether torch runs operations or records them.

Compiled code reads memory. Where torch records operations for later (``torch.jit.trace``, ``torch.export``,
``torch.compile``, ``make_fx``), transforms them (``vmap``, ``jvp``, dual numbers) or has tensors without memory
(``FakeTensorMode``, ``meta``), it must see operations of its own instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _TorchDispatchModeKey
from torch.autograd import forward_ad

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.native.library import is_available


def _bits(*names: str) -> int:
    bits = 0
    for name in names:
        bits |= DispatchKeySet(getattr(DispatchKey, name)).raw_repr()
    return bits


# torch's dispatcher says what it does: by keys of the thread (at most these where it just runs things) ...
_RUNNING = _bits("BackendSelect", "ADInplaceOrView")
_MODE = _bits("Python", "PythonTLSSnapshot")  # a dispatch mode: some only watch
_RECORDING_MODES = (_TorchDispatchModeKey.FAKE, _TorchDispatchModeKey.PROXY, _TorchDispatchModeKey.FUNCTIONAL)
# ... and of each tensor: what it is (at most these for one whose memory holds its values), or what stands in for it.
_PLAIN = _bits("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU")
_STAND_IN = _bits("Python", "FuncTorchBatched", "FuncTorchGradWrapper", "Functionalize")


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether torch records or transforms operations on these instead of just running them.

    Then nothing may be overwritten, read as a number or drawn from a generator of ours: only operations that torch
    returns a new tensor of have a place in its record.
    """
    if torch.compiler.is_compiling():
        return True
    unusual = _thread() & ~_RUNNING
    if unusual & ~_MODE or forward_ad._current_level >= 0:
        return True
    if unusual and any(torch._C._get_dispatch_mode(key) is not None for key in _RECORDING_MODES):
        return True
    return any(x is not None and (x.is_meta or bool(_keys(x) & _STAND_IN)) for x in tensors)


def is_compiled() -> bool:
    """Whether it is ``torch.compile`` that looks: it can leave functions out of its graph and call them as they are."""
    # Not is_exporting(): the compiler takes it for true wherever it meets it.
    return torch.compiler.is_dynamo_compiling() and not torch.compiler._is_exporting_flag


def check_runs(what: str, remedy: str, *tensors: Tensor) -> None:
    """Raise where torch records operations for later, which `what` would not follow.

    ``torch.compile`` may go on: it notices what changes from call to call.

    Raises:
        NabnError: names `what`, which changes from call to call, and the `remedy`; `tensors` are the chip's inputs.
    """
    if not is_compiled() and is_recorded(*tensors):
        raise NabnError(f"{what} cannot be traced, exported or transformed by torch: {remedy} first")


def fits(*tensors: Tensor | float | None, rows: Tensor | None = None) -> bool:
    """Whether compiled code is there and can work on these in place: plain float32 on the CPU, contiguous.

    Args:
        *tensors: What it is to read and write; numbers and None fit always.
        rows: ``[rows, columns]`` of which only the values of a row need lie side by side.
    """
    # In this order: torch's compiler, which must not look into a compiled library, stops at the first.
    if is_recorded() or _thread() & _MODE or not is_available():
        return False
    for x in tensors:
        if isinstance(x, Tensor) and not (_is_plain(x) and x.is_contiguous()):
            return False
    return rows is None or (_is_plain(rows) and rows.stride(1) == 1)


def _is_plain(x: Tensor) -> bool:
    return x.dtype is torch.float32 and not _keys(x) & ~_PLAIN


def _keys(x: Tensor) -> int:
    keys: int = torch._C._dispatch_keys(x).raw_repr()
    return keys


def _thread() -> int:
    keys: int = torch._C._dispatch_tls_local_include_set().raw_repr()
    return keys
