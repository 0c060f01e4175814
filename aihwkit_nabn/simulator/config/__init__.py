"""RPU configurations: the one all derive from, ready-made ones, their options, their forms as text and JSON."""

from __future__ import annotations

from aihwkit_nabn.simulator.config import presets
from aihwkit_nabn.simulator.config.presets import build_preset, get_preset, parse_preset, preset_names
from aihwkit_nabn.simulator.config.rpu_config import NoiseAwareRPUConfig

__all__ = ["NoiseAwareRPUConfig", "build_preset", "get_preset", "parse_preset", "preset_names", "presets"]
