"""The converters: one pass over a tile row's inputs, and one over its results.

They do number by number what `aihwkit_nabn.simulator.product.physics` does with torch, which takes over on other
devices and number types, with stochastic rounding, with effects that have no form here, and where nothing is compiled.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aihwkit_nabn.native.library import declare, run

#: Numbers that one generator gives; ``CHUNK`` in converters.c.
CHUNK = 2**16


class _Factor(ctypes.Structure):
    """One number (where `values` is None) for all outputs, one per row, or one per column."""

    _fields_ = [("values", c_void_p), ("value", c_float), ("by_column", c_int32)]


declare(
    "nabn_read_out",
    (c_void_p, "y total variance current drop table"),
    (c_int64, "rows columns"),
    (_Factor, "noise gain bias"),
    (c_uint64 * 2, "key"),
    (c_uint64, "first"),
    (c_float, "ir_drop bound"),
    (c_int32, "rounds"),
)
declare(
    "nabn_to_levels",
    (c_void_p, "x out"),
    (c_int64, "rows columns stride"),
    (c_float, "range factor step bound"),
    (c_int32, "cuts"),
)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Where normal numbers come from: generators of `CHUNK` numbers each.

    Args:
        key: Of all of them.
        first: Number of the first one.
        table: ``[65536]`` float32 normal quantiles.
    """

    key: tuple[int, int]
    first: int
    table: Tensor


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A readout in two dimensions, all tensors float32 on the CPU and contiguous.

    Args:
        y: ``[rows, columns]``, analog results in ADC levels; overwritten: with the digital values if there is no
            total.
        total: ``[rows, columns]`` to add the digital values to, or None.
        noise: Standard deviation of the output noise: one number, ``[rows]``, or ``[columns]`` with `by_column`.
        gain: What levels are multiplied with, likewise.
        bias: What is added where there is no total, likewise.
        by_column: Which way tensors of noise, gain and bias lie.
        rounds: Whether results are rounded to levels.
        bound: Largest level; infinity for none.
        variance: ``[rows, columns]`` of the read noise, or None.
        current: ``[rows, columns]``, what IR drop counts, or None.
        drop: ``[rows, columns]``, of which it takes away.
        ir_drop: Its factor.
    """

    y: Tensor
    total: Tensor | None
    noise: Tensor | float
    gain: Tensor | float
    bias: Tensor | float
    by_column: bool
    rounds: bool
    bound: float
    variance: Tensor | None = None
    current: Tensor | None = None
    drop: Tensor | None = None
    ir_drop: float = 0.0


def read_out(job: Readout, numbers: Numbers | None) -> None:
    """Do what `job` says; without numbers nothing is drawn."""
    rows, columns = job.y.shape
    fields: dict[str, Any] = {**vars(job), **({} if numbers is None else vars(numbers))}
    by_column = fields.pop("by_column")
    for name in ("noise", "gain", "bias"):
        value = fields[name]
        is_tensor = isinstance(value, Tensor)
        fields[name] = _Factor(value.data_ptr() if is_tensor else None, 0.0 if is_tensor else value, by_column)
    run("nabn_read_out", -(-rows * columns // CHUNK), rows=rows, columns=columns, **fields)


def to_levels(
    x: Tensor, out: Tensor, *, input_range: float | None, cuts: bool, scale: float, step: float, bound: float
) -> None:
    """Turn inputs into levels.

    Args:
        x: ``[rows, columns]`` float32 on the CPU, values of a row side by side.
        out: ``[rows, columns]``, likewise and contiguous; overwritten.
        input_range: What inputs are divided by.
        cuts: Whether they are cut off there first.
        scale: What they are divided by then.
        step: Between two levels; 0: nothing is rounded.
        bound: Largest level; infinity for none.
    """
    rows, columns = x.shape
    sizes = {"rows": rows, "columns": columns, "stride": x.stride(0)}
    settings = {"range": input_range or 0.0, "factor": 1.0 / scale, "step": step, "bound": bound, "cuts": cuts}
    run("nabn_to_levels", -(-rows * columns // CHUNK), x=x, out=out, **sizes, **settings)
