"""Mean and spread of each channel in one pass; `aihwkit_nabn.calibration.moments` has it with torch."""

from __future__ import annotations

from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from aihwkit_nabn.native.library import declare, run

# Values that are worth a thread of their own.
_SHARE = 2**16


declare("nabn_moments", (c_void_p, "x mean m2"), (c_int64, "batch channels length"), (c_double, "cancellation"))


def channel_moments(x: Tensor, cancellation: float) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations from it, each ``[channels]`` float64.

    Args:
        x: ``[batch, channels, length]`` float32 on the CPU, contiguous and not empty.
        cancellation: Where mean^2 / variance exceeds this, a second pass takes the squares around the mean.
    """
    batch, channels, length = x.shape
    mean, m2 = torch.empty(2, channels, dtype=torch.float64)
    sizes = {"batch": batch, "channels": channels, "length": length}
    n_shares = min(channels, -(-x.numel() // _SHARE))
    run("nabn_moments", n_shares, x=x, mean=mean, m2=m2, cancellation=cancellation, **sizes)
    return mean, m2
