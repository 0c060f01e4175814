"""The product of a layer's tiles with gradients, for what is tuned or trained behind converters."""

from __future__ import annotations

import torch
from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor
from torch.nn import functional as F

from aihwkit_nabn.simulator.product.converters import input_converter, output_converter, static_input_scale
from aihwkit_nabn.simulator.product.crossbar import TileRow, currents_of, missing_columns, own_inputs, within_range
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.readout import drop_factor
from aihwkit_nabn.simulator.product.replication import folded


def straight_through_product(
    x: Tensor, rows: list[TileRow], io: IOParameters, linear_map: LinearMap, *, bias: Tensor | None
) -> Tensor:
    """Return the same as `product_of_rows`, with gradients that pass the converters; noise is a constant to them.

    Random numbers come from torch's global generator.
    """
    dac, adc = input_converter(io), output_converter(io)
    total: Tensor | None = None
    for row in rows:
        part = own_inputs(x, row, linear_map)
        matrix = F.pad(folded(row.weight, row.copies), missing_columns(row, linear_map))
        part = within_range(part, row.input_range)
        scale = static_input_scale(io) or 1.0
        values = dac.straight_through(part / scale if scale != 1.0 else part)
        if not io.is_perfect and io.inp_noise > 0.0:
            values = values + io.inp_noise * torch.randn_like(values)
        if dac.asymmetry:
            values = torch.where(values < 0, values * (1.0 - dac.asymmetry), values)
        result = linear_map.apply(values, matrix, None)
        shape = [-1, *[1] * (-linear_map.channel_dim - 1)]
        if not io.is_perfect:
            with torch.no_grad():
                currents = currents_of(values.detach(), matrix.detach(), row, io, linear_map, 1.0, 1.0)
                noise: Tensor | float = io.out_noise if row.noise is None else row.noise.view(shape)
                loss, read_noise = torch.zeros_like(result), torch.zeros_like(result)
                if currents.total is not None and currents.drop is not None:
                    loss = io.ir_drop * drop_factor(currents.total) * currents.drop
                if currents.variance is not None:
                    read_noise = torch.randn_like(result) * (currents.variance + noise * noise).sqrt()
                elif isinstance(noise, Tensor) or noise > 0.0:
                    read_noise = torch.randn_like(result) * noise
            result = result - loss
            if adc.asymmetry:
                result = torch.where(result < 0, result * (1.0 - adc.asymmetry), result)
            result = result + read_noise
        if row.adc_range is not None:
            ranges = row.adc_range.view(shape)
            result = adc.straight_through(result / ranges) * ranges
        else:
            result = adc.straight_through(result)
        in_range = 1.0 if row.input_range is None else row.input_range
        gain = row.scale * (in_range * scale * (1.0 if io.is_perfect else io.out_scale))
        result = result * (gain.view(shape) if isinstance(gain, Tensor) and gain.numel() > 1 else gain)
        total = result if total is None else total + result
    assert total is not None
    return total if bias is None else total + bias.view([-1, *[1] * (-linear_map.channel_dim - 1)])
