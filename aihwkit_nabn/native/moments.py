"""Mean and spread of each channel in one pass; `aihwkit_nabn.calibration.moments` has it with torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from aihwkit_nabn.native.library import declare, run

# Values that are worth a thread of their own.
_SHARE = 2**16


class _Moments(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("m2", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("cancellation", ctypes.c_double),
        ("next", ctypes.c_longlong),
    ]


declare("nabn_moments", _Moments)


def channel_moments(x: Tensor, cancellation: float) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations from it, each ``[channels]`` float64.

    Args:
        x: ``[batch, channels, length]`` float32 on the CPU, contiguous and not empty.
        cancellation: Where mean^2 / variance exceeds this, a second pass takes the squares around the mean.
    """
    batch, channels, length = x.shape
    mean, m2 = torch.empty(2, channels, dtype=torch.float64)
    arguments = _Moments(
        x=x.data_ptr(),
        mean=mean.data_ptr(),
        m2=m2.data_ptr(),
        batch=batch,
        channels=channels,
        length=length,
        cancellation=cancellation,
        next=0,
    )
    run("nabn_moments", arguments, min(channels, -(-x.numel() // _SHARE)))
    return mean, m2
