"""Sum and sum of squares of each run of values, in one pass; `aihwkit_nabn.calibration.moments` has it with torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from aihwkit_nabn.native.library import declare, run

# Values that a thread takes at once; ``SHARE`` in moments.c.
_SHARE = 2**16


class _Runs(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("squares", ctypes.c_void_p),
        ("runs", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("next", ctypes.c_longlong),
    ]


declare("nabn_sum_runs", _Runs)


def sum_runs(x: Tensor) -> Tensor:
    """Return the sums over the last dimension of `x` and of its squares.

    Args:
        x: ``[runs, length]`` float32 on the CPU, contiguous; neither is zero.

    Returns:
        ``[2, runs]`` float64.
    """
    runs, length = x.shape
    out = torch.empty(2, runs, dtype=torch.float64)
    sums, squares = out.data_ptr(), out.data_ptr() + runs * out.element_size()
    arguments = _Runs(x=x.data_ptr(), sums=sums, squares=squares, runs=runs, length=length, next=0)
    run("nabn_sum_runs", arguments, -(-runs * length // _SHARE))
    return out
