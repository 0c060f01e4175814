"""The converters: one pass over a tile row's inputs, and one over its results.

They do number by number what `aihwkit_nabn.simulator.product.physics` does with torch, which takes over on other
devices and number types, with stochastic rounding, with effects that have no form here, and where nothing is compiled.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aihwkit_nabn.native.library import declare, run

#: Numbers that one generator gives; ``CHUNK`` in converters.c.
CHUNK = 2**16


class _Factor(ctypes.Structure):
    _fields_ = [("values", ctypes.c_void_p), ("value", ctypes.c_float), ("by_column", ctypes.c_int32)]


class _Readout(ctypes.Structure):
    _fields_ = [
        ("y", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("variance", ctypes.c_void_p),
        ("current", ctypes.c_void_p),
        ("drop", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("noise", _Factor),
        ("gain", _Factor),
        ("bias", _Factor),
        ("key", ctypes.c_uint64 * 2),
        ("first", ctypes.c_uint64),
        ("ir_drop", ctypes.c_float),
        ("bound", ctypes.c_float),
        ("rounds", ctypes.c_int32),
        ("next", ctypes.c_longlong),
    ]


class _Conversion(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("range", ctypes.c_float),
        ("factor", ctypes.c_float),
        ("step", ctypes.c_float),
        ("bound", ctypes.c_float),
        ("cuts", ctypes.c_int32),
        ("next", ctypes.c_longlong),
    ]


declare("nabn_read_out", _Readout)
declare("nabn_to_levels", _Conversion)


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
    n_chunks = -(-rows * columns // CHUNK)
    kinds: dict[str, Any] = {name: kind for name, kind, *_ in _Readout._fields_}
    fields = {name: _field(value, kinds[name], job.by_column) for name, value in vars(job).items() if name in kinds}
    if numbers is not None:
        fields |= {"table": numbers.table.data_ptr(), "key": numbers.key, "first": numbers.first}
    arguments = _Readout(rows=rows, columns=columns, **fields)
    run("nabn_read_out", arguments, n_chunks)


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
    arguments = _Conversion(
        x=x.data_ptr(),
        out=out.data_ptr(),
        rows=rows,
        columns=columns,
        stride=x.stride(0),
        range=input_range or 0.0,
        factor=1.0 / scale,
        step=step,
        bound=bound,
        cuts=cuts,
        next=0,
    )
    run("nabn_to_levels", arguments, -(-rows * columns // CHUNK))


def _field(value: Any, kind: type, by_column: bool) -> Any:
    """Return what stands for a value in a structure: where a tensor lies, in a `_Factor` with one number otherwise."""
    place = value.data_ptr() if isinstance(value, Tensor) else None
    if kind is not _Factor:
        return value if place is None else place
    return _Factor(place, 0.0 if place is not None else value, by_column)
