"""What a forward pass does with the layer's weight and bias, found out by trials."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.errors import ConversionError, NabnError
from aihwkit_nabn.nn.operation import OperationCall, OwnForward
from aihwkit_nabn.nn.probe import first_difference
from aihwkit_nabn.simulator.product.linear_map import LinearMap


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """What the forward pass of a layer does with weight and bias, as trials showed.

    Args:
        linear_map: How the operation applies the weight.
        weight: What it is given.
        is_computed: Whether that is another weight than the layer's.
        with_bias: Whether it is given the layer's own bias.
    """

    linear_map: LinearMap
    weight: Tensor
    is_computed: bool
    with_bias: bool


def use_of_weight(module: Any, own: OwnForward) -> WeightUse:
    """Try a layer's forward pass on inputs of several sizes; the layer is not changed.

    Raises:
        ConversionError: it uses the weight for more than the operation, or it works on none of them.
    """
    twin: Any = copy.deepcopy(module).eval()
    weight, bias = twin.weight.detach(), getattr(twin, "bias", None)
    calls: list[OperationCall] = []

    def exactly(call: OperationCall) -> Tensor:
        calls.append(call)
        first = calls[0]
        if call.weight.shape != weight.shape:
            raise NabnError(
                f"its forward pass makes a weight of shape {tuple(call.weight.shape)} of {tuple(weight.shape)}"
            )
        if not torch.equal(call.weight, first.weight):
            raise NabnError("its forward pass computes a weight that depends on the input")
        if (call.bias is None) != (first.bias is None) or call.linear_map.groups != first.linear_map.groups:
            raise NabnError("its forward pass chooses bias or groups by the input")
        return call.exactly()

    def from_tiles(call: OperationCall) -> Tensor:
        matrix = call.linear_map.to_matrix(calls[0].weight)
        return call.linear_map.apply(call.input, matrix, call.bias)

    def caught(x: Tensor) -> Any:
        own.run(twin, exactly, (x,), {}, weight=weight, bias=bias, n_calls=1)
        blank = no_values(weight.shape, weight.dtype, weight.device)
        return own.run(twin, from_tiles, (x,), {}, weight=blank, bias=bias)

    reason = first_difference(module, lambda x: own.function(twin, x), caught)
    if reason:
        raise ConversionError(reason)
    first = calls[0]
    return WeightUse(
        linear_map=first.linear_map,
        weight=first.weight,
        is_computed=not torch.equal(first.weight, weight),
        with_bias=first.bias is not None,
    )


def no_values(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor that tells its shape, type and device; whatever is computed from it is NaN."""
    return torch.full((), math.nan, dtype=dtype, device=device).expand(tuple(shape))
