"""The static input ranges of tiles: beyond them the DAC cuts inputs off."""

from __future__ import annotations

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
