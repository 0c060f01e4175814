"""The product of a layer's tiles with gradients, for what is tuned or trained behind converters."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.simulator.product.crossbar import (
    ADC_RANGE,
    RowCurrents,
    TileRow,
    missing_columns,
    own_inputs,
    readout_of,
    within_range,
)
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.physics.converters import input_converter, static_input_scale
from aihwkit_nabn.simulator.product.physics.effect import Reading, disturbed
from aihwkit_nabn.simulator.product.physics.inputs import disturbed_inputs
from aihwkit_nabn.simulator.product.replication import folded


def straight_through_product(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, *, bias: Tensor | None
) -> Tensor:
    """Return the same as `product_of_rows`, with gradients that pass the converters; noise is a constant to them.

    Random numbers come from torch's global generator.
    """
    shape = [-1, *[1] * (-linear_map.channel_dim - 1)]

    def along(values: Any) -> Any:
        return values.view(shape) if isinstance(values, Tensor) and values.numel() > 1 else values

    total: Tensor | None = None
    for row in rows:
        dac, readout = input_converter(io), readout_of(row, io, in_levels=False)
        matrix = F.pad(folded(row.weight, row.copies), missing_columns(row, linear_map))
        part = within_range(own_inputs(x, row, linear_map), row.input_range)
        scale = static_input_scale(io) or 1.0
        values = dac.straight_through(part / scale if scale != 1.0 else part)
        values = disturbed_inputs(values, dac, io, 1.0)
        outputs = {name: along(value) for name, value in readout.outputs.items()}
        at = Reading(unit=1.0, noise=along(readout.noise), outputs=outputs, normal=torch.randn_like, add=_add)
        with torch.no_grad():
            currents = RowCurrents(values.detach(), matrix.detach(), row, linear_map, 1.0, 1.0)
            flows = [effect.flows(currents) for effect in readout.effects]
        result = disturbed(linear_map.apply(values, matrix, None), readout.effects, flows, at)
        if ADC_RANGE in outputs:
            result = readout.adc.straight_through(result / outputs[ADC_RANGE]) * outputs[ADC_RANGE]
        else:
            result = readout.adc.straight_through(result)
        result = result * along(readout.gain)
        total = result if total is None else total + result
    assert total is not None
    return total if bias is None else total + bias.view(shape)


def _add(y: Tensor, a: Tensor, b: Tensor | float, scale: float = 1.0) -> Tensor:
    return y + (a if scale == 1.0 else scale * a) * b
