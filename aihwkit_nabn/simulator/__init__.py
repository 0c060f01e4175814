"""How an analog tile is configured (`config`) and computed (`product`)."""

from __future__ import annotations

from aihwkit_nabn.simulator.config import (
    NoiseAwareRPUConfig,
    build_preset,
    get_preset,
    parse_preset,
    preset_names,
    presets,
)

__all__ = ["NoiseAwareRPUConfig", "build_preset", "get_preset", "parse_preset", "preset_names", "presets"]
