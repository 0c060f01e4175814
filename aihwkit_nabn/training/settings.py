"""The tiles' configuration for hardware-aware training: noise, clipping, remapping, input ranges."""

from __future__ import annotations

import copy
from typing import Any

from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.parameters.enums import WeightClipType, WeightRemapType
from aihwkit.simulator.parameters.inference import WeightClipParameter, WeightRemapParameter
from torch import nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.reparametrization import is_trainable
from aihwkit_nabn.simulator.config.rpu_config import check_rpu_config
from aihwkit_nabn.training.noise import TrainingNoise

INPUT_RANGE_BATCHES = 50  # of the recipe: ranges follow the data so long, then they are learned


def training_config(rpu_config: RPUConfigBase | None, noise: TrainingNoise, clip_sigma: float | None) -> Any:
    """Return aihwkit's configuration for training at a noise, from that of the chip.

    The recipe is that of aihwkit's notebook on hardware-aware training: a weight modifier relative to the largest
    weight, clipping at a multiple of the layer's standard deviation after every step, remapping where weights are
    scaled to the tile's range, and with converters input ranges that are learned. Where products are perfect, a layer
    is one tile, however large, so that "the largest weight" is the layer's.

    Args:
        rpu_config: The chip's configuration: its mapping, converters and input ranges are kept; None: an ideal chip.
        noise: The modifier.
        clip_sigma: Weights are clipped at this many standard deviations; None: never.

    Raises:
        NabnError: the configuration is not for aihwkit's torch tile, which alone can train with these.
    """
    if rpu_config is None:
        config: Any = TorchInferenceRPUConfig(drift_compensation=None)
        config.forward.is_perfect = True
    elif isinstance(rpu_config, TorchInferenceRPUConfig):
        config = copy.deepcopy(rpu_config)
    else:
        if isinstance(rpu_config, (str, type)):
            check_rpu_config("rpu_config", rpu_config)
        raise NabnError(
            f"rpu_config must be for aihwkit's torch tile (a preset, or a TorchInferenceRPUConfig), "
            f"got {type(rpu_config).__name__}"
        )
    config.modifier = noise.modifier()
    config.clip = WeightClipParameter(type=WeightClipType.NONE)
    if clip_sigma is not None:
        config.clip = WeightClipParameter(type=WeightClipType.LAYER_GAUSSIAN, sigma=clip_sigma)
    if config.forward.is_perfect:
        config.mapping.max_input_size = config.mapping.max_output_size = 0
    config.remap = WeightRemapParameter(type=_remap_type(config.mapping))
    ranges = config.pre_post.input_range
    if ranges.enable:
        ranges.learn_input_range = True
        ranges.init_from_data = INPUT_RANGE_BATCHES
        ranges.init_std_alpha, ranges.decay, ranges.input_min_percentage = 3.0, 0.01, 0.995
    return config


def spare_degenerate(name: str, module: nn.Module, config: Any) -> Any:
    """Switch off, per layer, what would divide by zero or by no standard deviation, or change a frozen layer's weights.

    aihwkit's per-layer function.
    """
    weight = getattr(module, "weight", None)
    if weight is not None and bool((weight.detach().flatten(1).abs().amax(1) == 0).any()):
        config.remap.type = WeightRemapType.NONE  # a column of zeros
    if weight is not None and weight.numel() < 2:
        config.clip.type = WeightClipType.NONE
    if weight is not None and not is_trainable(module):
        config.remap.type, config.clip.type = WeightRemapType.NONE, WeightClipType.NONE
    return config


def _remap_type(mapping: Any) -> WeightRemapType:
    if mapping.weight_scaling_omega <= 0:
        return WeightRemapType.NONE
    if mapping.weight_scaling_columnwise:
        return WeightRemapType.CHANNELWISE_SYMMETRIC
    return WeightRemapType.LAYERWISE_SYMMETRIC
