"""Scale, offset and input gain of each channel in one pass; `aihwkit_nabn.nn.alignment` has it with torch."""

from __future__ import annotations

import ctypes

from torch import Tensor

from aihwkit_nabn.native.library import declare, run

# Values that a thread takes at once; ``SHARE`` in alignment.c.
_SHARE = 2**16


class _Alignment(ctypes.Structure):
    _fields_ = [
        ("y", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("next", ctypes.c_longlong),
    ]


declare("nabn_align", _Alignment)


def align_in_place(y: Tensor, scale: Tensor, offset: Tensor, gain: Tensor | None, mean: Tensor | None) -> None:
    """Overwrite `y` with ``scale * y + offset + gain * mean``; all float32 on the CPU and contiguous, none empty.

    Args:
        y: ``[batch, channels, *spatial]``.
        scale: ``[channels]``, as are the offset and the gain.
        offset: See there.
        gain: See there; None with a mean that is None.
        mean: ``[batch, groups, *spatial]``.
    """
    batch, channels = y.shape[:2]
    length = y.shape[2:].numel()
    arguments = _Alignment(
        y=y.data_ptr(),
        scale=scale.data_ptr(),
        offset=offset.data_ptr(),
        gain=None if gain is None else gain.data_ptr(),
        mean=None if mean is None else mean.data_ptr(),
        batch=batch,
        channels=channels,
        groups=1 if mean is None else mean.shape[1],
        length=length,
        next=0,
    )
    run("nabn_align", arguments, -(-batch * channels * length // _SHARE))
