"""Static ranges of tiles: the DAC clips inputs beyond them, the ADC outputs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.nn.layers import named_analog_layers, own_tiles


def ranged_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the analog layers of `model` whose tiles have a static input range, by name."""
    found = named_analog_layers(model)
    return {name: layer for name, layer in found.items() if any(t.input_range is not None for t in own_tiles(layer))}


def input_ranges(model: nn.Module) -> dict[str, float]:
    """Return the input range of every layer that has one; the largest where its tiles differ."""
    return {
        name: max(abs(t.input_range.item()) for t in own_tiles(layer) if t.input_range is not None)
        for name, layer in ranged_layers(model).items()
    }


def warn_of_initial_ranges(model: nn.Module, stacklevel: int = 3) -> None:
    """Warn if the input ranges are those that aihwkit starts with, which suit no layer in particular."""
    for name, layer in ranged_layers(model).items():
        for tile in own_tiles(layer):
            settings = tile.rpu_config.pre_post.input_range
            untouched = not bool(tile.input_range_update_idx.any()) and settings.init_from_data > 0
            if untouched and settings.init_value == type(settings)().init_value:
                warnings.warn(
                    f"the input range of layer {name!r} is still the initial {settings.init_value:g}: inputs beyond "
                    "it are clipped; set the ranges with calibrate_input_ranges(model, batches)",
                    stacklevel=stacklevel,
                )
                return


def set_input_range(layer: nn.Module, value: float) -> None:
    """Give all tiles of a layer an input range, which training does not estimate anew.

    Raises:
        NabnError: it is no positive number.
    """
    value = check_number("input_range", value, exclusive_minimum=0.0)
    for tile in own_tiles(layer):
        if tile.input_range is not None:
            tile.input_range.data.fill_(value)
            tile.input_range_update_idx.data.fill_(tile.rpu_config.pre_post.input_range.init_from_data)


def output_bounds(model: nn.Module) -> dict[str, Tensor]:
    """Return the ADC range of each output, tile after tile, for layers with ranges of their own.

    In units of one input at full scale times the largest weight, like ``out_bound``.
    """
    found = {}
    for name, layer in named_analog_layers(model).items():
        bounds = [bound for tile in own_tiles(layer) if (bound := own_bounds(tile)) is not None]
        if bounds:
            found[name] = torch.cat([bound.detach().cpu() for bound in bounds])
    return found


def own_bounds(tile: Any) -> Tensor | None:
    """Return ``[out]``, the tile's own buffer of its ADC's ranges, or None where it has none."""
    bound: Tensor | None = getattr(tile.tile, "output_bound", None)
    return bound


def check_output_bounds(layer: nn.Module, values: Tensor) -> None:
    """Raise unless `values` are ranges for the ADCs of a layer.

    Raises:
        NabnError: one is no positive finite number, there is not one for each output of each tile, or the tiles have no
            ranges of their own.
    """
    n = sum(bound.numel() for tile in own_tiles(layer) if (bound := own_bounds(tile)) is not None)
    if values.shape != (n,):
        raise NabnError(
            f"output bounds must be {n}, one for each output of tiles with output_range, got {values.shape}"
        )
    if not bool(((values > 0) & values.isfinite()).all()):
        raise NabnError("output bounds must be finite numbers > 0")


def set_output_bounds(layer: nn.Module, values: Tensor) -> None:
    """Give the ADCs of a layer's tiles their ranges, as `output_bounds` returns them.

    Raises:
        NabnError: see `check_output_bounds`.
    """
    check_output_bounds(layer, values)
    for tile in own_tiles(layer):
        bound = own_bounds(tile)
        if bound is not None:
            bound.copy_(values[: bound.numel()])
            values = values[bound.numel() :]
