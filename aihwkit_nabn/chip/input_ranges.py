"""The static input ranges of tiles: beyond them the DAC cuts inputs off."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from aihwkit_nabn.errors import check_number
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.simulator.mvm import tiles_of


def ranged_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the analog layers of `model` whose tiles have a static input range, by name."""
    found = named_analog_layers(model)
    return {name: layer for name, layer in found.items() if any(t.input_range is not None for t in tiles_of(layer))}


def input_ranges(model: nn.Module) -> dict[str, float]:
    """Return the input range of every layer that has one; the largest where its tiles differ."""
    return {
        name: max(abs(t.input_range.item()) for t in tiles_of(layer) if t.input_range is not None)
        for name, layer in ranged_layers(model).items()
    }


def warn_of_initial_ranges(model: nn.Module, stacklevel: int = 3) -> None:
    """Warn if the input ranges are those that aihwkit starts with, which suit no layer in particular."""
    for name, layer in ranged_layers(model).items():
        for tile in tiles_of(layer):
            inner: Any = tile
            settings = inner.rpu_config.pre_post.input_range
            untouched = not bool(inner.input_range_update_idx.any()) and settings.init_from_data > 0
            if untouched and settings.init_value == type(settings)().init_value:
                warnings.warn(
                    f"the input range of layer {name!r} is the initial {settings.init_value:g}: inputs beyond it are "
                    "cut off; set the ranges with calibrate_input_ranges(model, batches)",
                    stacklevel=stacklevel,
                )
                return


def set_input_range(layer: nn.Module, value: float) -> None:
    """Give all tiles of a layer an input range, which training does not estimate anew.

    Raises:
        NabnError: it is no positive number.
    """
    value = check_number("input_range", value, exclusive_minimum=0.0)
    for tile in tiles_of(layer):
        inner: Any = tile
        if inner.input_range is not None:
            inner.input_range.data.fill_(value)
            inner.input_range_update_idx.data.fill_(inner.rpu_config.pre_post.input_range.init_from_data)
