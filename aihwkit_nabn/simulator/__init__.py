"""How an analog tile is configured (`config`) and computed (`product`)."""

from __future__ import annotations

from aihwkit_nabn.simulator.config import presets
from aihwkit_nabn.simulator.config.io_options import register_readout_effect
from aihwkit_nabn.simulator.config.presets import build_preset, get_preset, parse_preset, preset_names
from aihwkit_nabn.simulator.config.rpu_config import NoiseAwareRPUConfig
from aihwkit_nabn.simulator.product.physics.effect import ReadoutEffect

__all__ = [
    "NoiseAwareRPUConfig",
    "ReadoutEffect",
    "build_preset",
    "get_preset",
    "parse_preset",
    "preset_names",
    "presets",
    "register_readout_effect",
]
