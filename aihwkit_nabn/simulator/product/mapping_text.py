"""How a layer's weights lie on its tiles, in words."""

from __future__ import annotations

from aihwkit.simulator.tiles.array import TileModuleArray

from aihwkit_nabn.simulator.product.replication import copies_of
from aihwkit_nabn.simulator.product.tiles import tiles_of


def describe_mapping(array: TileModuleArray) -> str:
    """Return the tiles' size, what is scaled to full range, whether columns are copied and ranges set from images."""
    config = tiles_of(array)[0].rpu_config
    mapping = config.mapping
    rows, columns = (
        str(size) if size > 0 else "unlimited" for size in (mapping.max_input_size, mapping.max_output_size)
    )
    omega = mapping.weight_scaling_omega
    if not omega:
        scaling = "weights in the layer's own units"
    else:
        scaled = "each column" if mapping.weight_scaling_columnwise else "each tile"
        scaling = f"{scaled} scaled to {'full range' if omega == 1.0 else f'{omega:g} of full range'}"
    parts = [f"tiles of {rows} x {columns}", scaling]
    if copies_of(array) > 1:
        parts.append("columns copied over free rows")
    if getattr(config, "output_range", False):
        parts.append("ADC ranges from images")
    return ", ".join(parts)


def n_cells(array: TileModuleArray) -> int:
    """Return how many cells of the tiles are in use, copies included; a cell holds one weight."""
    return sum(tile.in_size * tile.out_size for tile in tiles_of(array))
