"""How an analog tile is configured and computed: RPU configurations, presets, matrix-vector products."""

from __future__ import annotations

from aihwkit_nabn.simulator import presets
from aihwkit_nabn.simulator.config import NoiseAwareRPUConfig
from aihwkit_nabn.simulator.presets import build_preset, get_preset, parse_preset, preset_names

__all__ = ["NoiseAwareRPUConfig", "build_preset", "get_preset", "parse_preset", "preset_names", "presets"]
