"""Chips, and settings of their tiles."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.seeding import isolated_rng
from aihwkit_nabn.simulator import parse_preset


def tiled(preset: Any, n_in: int = 16, n_out: int = 7) -> Any:
    """Return a noise setting, given as text or as a configuration, on tiles of another size."""
    config = parse_preset(preset) if isinstance(preset, str) else copy.deepcopy(preset)
    config.mapping.max_input_size, config.mapping.max_output_size = n_in, n_out
    return config


def with_converters(
    kind: type = TorchInferenceRPUConfig,
    tiles: tuple[int, int] = (512, 512),
    input_range: float | None = None,
    **forward: Any,
) -> Any:
    """Return tiles with converters of 8 bits and no noise, whose columns fill the range; `forward` says otherwise."""
    config = tiled(kind(drift_compensation=None), *tiles)
    config.mapping.weight_scaling_omega, config.mapping.weight_scaling_columnwise = 1.0, True
    plain = {"noise_management": NoiseManagementType.NONE, "bound_management": BoundManagementType.NONE}
    converters = {"inp_res": 254.0, "out_res": 254.0, "out_bound": 10.0, "out_noise": 0.0}
    config.forward = IOParameters(**{**plain, **converters, **forward})
    if input_range is not None:
        config.pre_post.input_range.enable, config.pre_post.input_range.init_value = True, input_range
    return config


def tiled_layer(module: nn.Module, setting: str, tiles: tuple[int, int] = (512, 512), **forward: Any) -> Any:
    """Return the analog form of a module with weights drawn anew; `forward` are fields of aihwkit's parameters."""
    config = tiled(setting, *tiles)
    config.forward = dataclasses.replace(config.forward, **forward)
    torch.manual_seed(5)
    module = copy.deepcopy(module)
    module.reset_parameters()  # type: ignore[operator]
    return nabn.convert_to_noise_aware(nn.Sequential(module), config)[0]  # type: ignore[index]


def chip_of(
    model: nn.Module,
    preset: Any = "pcm",
    seed: int = 3,
    t_inference: float | str = "1h",
    inputs: Iterable[Any] = (),
    **options: Any,
) -> Any:
    """Return a chip of a model; `inputs` set the ranges of its tiles where these have any."""
    config = parse_preset(preset) if isinstance(preset, str) else preset
    chip = nabn.convert_to_noise_aware(model, config, **options)
    if inputs and config.pre_post.input_range.enable:
        nabn.calibrate_input_ranges(chip, inputs)
    return nabn.program_chip(chip, seed, t_inference)


def evaluated(model: nn.Module, eval_fn: Callable[[nn.Module], dict[str, float]], preset: Any = "pcm") -> Any:
    """Return the results of one uncalibrated chip of a model."""
    config = parse_preset(preset) if isinstance(preset, str) else preset
    scenarios = [nabn.Scenario(name="s", rpu_config=config)]
    return nabn.evaluate(model, scenarios=scenarios, methods=["none"], eval_fn=eval_fn, chips=1, progress=False)


def aged(model: Any, weights: Tensor, t_inference: float | None = None, seed: int = 0) -> tuple[Tensor, Any]:
    """Return weights as a noise model programs them, or as they are at a time after that, and the devices' state."""
    with isolated_rng(seed):
        programmed, state = model.apply_programming_noise(weights)
    if t_inference is None:
        return programmed, state
    with isolated_rng(seed + 1):
        return model.apply_drift_noise(programmed, state, t_inference), state


def without_noise(tiles: tuple[int, int] = (512, 512), perfect: bool = True, **forward: Any) -> TorchInferenceRPUConfig:
    """Return aihwkit's torch tiles: perfect, or with a product that only `forward` disturbs."""
    config = tiled(TorchInferenceRPUConfig(drift_compensation=None), *tiles)
    config.forward.is_perfect = perfect
    if not perfect:
        options = {"inp_res": -1.0, "out_res": -1.0, "inp_bound": 0.0, "out_bound": 0.0, "out_noise": 0.0, **forward}
        config.forward = IOParameters(
            noise_management=NoiseManagementType.NONE, bound_management=BoundManagementType.NONE, **options
        )
    return config
