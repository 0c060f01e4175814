"""The RPU configuration all presets derive from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from typing import Any

from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.parameters.enums import BoundManagementType

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.simulator.product.replication import check_replicate_rows
from aihwkit_nabn.simulator.product.vectors import CrossbarTile


def perfect_forward() -> IOParameters:
    """Return input-output parameters of an ideal matrix-vector product: no converters, no read noise."""
    return IOParameters(is_perfect=True)


def weight_mapping() -> MappingParameter:
    """Return 512 x 512 tiles that hold the weights in the layer's own units."""
    return MappingParameter(max_input_size=512, max_output_size=512)


def columnwise_mapping() -> MappingParameter:
    """Return 512 x 512 tiles whose output columns each fill the conductance range.

    Device noise is given in conductance, so a column whose weights are small next to the tile's largest would drown in
    it; one digital scale per column, as in aihwkit's crossbar preset, prevents that.
    """
    return MappingParameter(
        max_input_size=512, max_output_size=512, weight_scaling_omega=1.0, weight_scaling_columnwise=True
    )


@dataclass
class NoiseAwareRPUConfig(TorchInferenceRPUConfig):
    """An inference configuration in which only the named noise acts.

    aihwkit's default adds 8-bit converters, output noise and PCM devices; here the matrix-vector product is perfect and
    nothing is compensated unless asked for, so that an effect seen is the effect configured. Runs on a `CrossbarTile`,
    aihwkit's torch tile with read noise and IR drop, on CPU and GPU. Every field of aihwkit's
    ``TorchInferenceRPUConfig`` can be given.

    Attributes:
        forward: Non-idealities of each matrix-vector product; perfect by default.
        mapping: Tile sizes and weight scaling; 512 x 512 tiles in the layer's own units by default.
        noise_model: What programming and time do to the weights; Gaussian, 0.06 of the maximum, by default.
        drift_compensation: Digital rescaling of each tile's output after drift; None by default.
        replicate_rows: Whether columns that leave rows of their tile free are copied onto them (`replication`): as
            often as they fit, or at most so many times; False by default.
        output_range: Whether each tile's ADC has a range of its own, which `calibrate_input_ranges` sets from images;
            False by default: all have ``forward.out_bound``.

    Raises:
        NabnError: `replicate_rows` is something else, or `output_range` is asked for where there is no bounded ADC or
            no static input range.
    """

    simulator_tile_class: type = CrossbarTile
    forward: IOParameters = field(default_factory=perfect_forward, metadata={"bindings_include": True})
    mapping: MappingParameter = field(default_factory=weight_mapping)
    noise_model: BaseNoiseModel = field(default_factory=GaussianWeightNoise)
    drift_compensation: BaseDriftCompensation | None = None
    replicate_rows: bool | int = False
    output_range: bool = False

    def __post_init__(self) -> None:
        check_replicate_rows(self.replicate_rows, self.mapping.max_input_size)
        if not isinstance(self.output_range, bool):
            raise NabnError(f"output_range must be true or false, got {self.output_range!r}")
        if self.output_range and (self.forward.is_perfect or self.forward.out_bound <= 0):
            raise NabnError("output_range sets the ADC's range from images, but there is no bounded ADC; give out_bits")
        if self.output_range and self.forward.bound_management != BoundManagementType.NONE:
            name = self.forward.bound_management.name
            raise NabnError(f"output_range needs forward.bound_management NONE, got {name}")
        if self.output_range and not self.pre_post.input_range.enable:
            raise NabnError("output_range needs static input ranges, but input_range is false")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoiseAwareRPUConfig:
        # Each tile holds a configuration: the general way costs more than copying the tile's weights.
        twin: NoiseAwareRPUConfig = _copied(self, memo)
        return twin


def check_rpu_config(field: str, value: object, error: type[NabnError] = NabnError) -> None:
    """Raise `error` unless `value` is an aihwkit RPU configuration; say how to make one of what is nearly one."""
    if isinstance(value, RPUConfigBase):
        return
    if isinstance(value, type) and issubclass(value, RPUConfigBase):
        hint = f"the class {value.__name__}; call it: {value.__name__}()"
    elif isinstance(value, str):
        hint = f"{value!r}; aihwkit_nabn.presets.parse_preset({value!r}) makes one from text"
    else:
        hint = f"{type(value).__name__}; aihwkit_nabn.presets.PCMPreset() is one"
    raise error(f"{field} must be an aihwkit RPU configuration, got {hint}")


def _copied(config: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy of a configuration: its dataclasses by their attributes, all else the general way."""
    twin = memo[id(config)] = object.__new__(type(config))
    for name, value in vars(config).items():
        if value is None or isinstance(value, (bool, int, float, str, Enum, type)):
            copied = value
        elif id(value) in memo:
            copied = memo[id(value)]
        elif is_dataclass(value) and type(value).__module__.startswith("aihwkit."):
            copied = _copied(value, memo)
        else:
            copied = copy.deepcopy(value, memo)
        twin.__dict__[name] = copied
    return twin
