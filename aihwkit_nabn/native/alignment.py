"""Scale, offset and input gain of each channel in one pass; `aihwkit_nabn.nn.alignment` has it with torch."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

from torch import Tensor

from aihwkit_nabn.native.library import declare, run

# Values that a thread takes at once; ``SHARE`` in alignment.c.
_SHARE = 2**16


declare("nabn_align", (c_void_p, "y scale offset gain mean"), (c_int64, "batch channels groups length"))


def align_in_place(y: Tensor, scale: Tensor, offset: Tensor, gain: Tensor | None, mean: Tensor | None) -> None:
    """Overwrite `y` with ``scale * y + offset + gain * mean``; all float32 on the CPU and contiguous, none empty.

    `y` is ``[batch, channels, *spatial]``, `mean` ``[batch, groups, *spatial]``, the others ``[channels]``; `gain` and
    `mean` are both there or both None.
    """
    batch, channels = y.shape[:2]
    length = y.shape[2:].numel()
    sizes = {"batch": batch, "channels": channels, "groups": 1 if mean is None else mean.shape[1], "length": length}
    n_shares = -(-batch * channels * length // _SHARE)
    run("nabn_align", n_shares, y=y, scale=scale, offset=offset, gain=gain, mean=mean, **sizes)
