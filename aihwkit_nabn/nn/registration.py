"""Our layers in aihwkit's own `convert_to_analog`."""

from __future__ import annotations

import copy
from typing import Any

from aihwkit.nn import conversion as aihwkit_conversion
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import nn

from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.conversion import ANALOG_FORMS, NORMALIZATION_FORMS
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward
from aihwkit_nabn.nn.own_normalization import NoiseAwareNormalization
from aihwkit_nabn.simulator.product.vectors import CrossbarTile

_replaced: dict[type[nn.Module], type | None] = {}


def _forms() -> dict[type[nn.Module], type]:
    return {**ANALOG_FORMS, **NORMALIZATION_FORMS, nn.SyncBatchNorm: NoiseAwareBatchNorm}


def _analog() -> set[type]:
    """What has a digital form to go back to."""
    return {*_forms().values(), NoiseAwareOwnForward, NoiseAwareNormalization}


def register() -> None:
    """Make aihwkit's plain `convert_to_analog` (and `convert_to_digital`) use the noise-aware layers.

    Works for BatchNorm and for layers whose exact class aihwkit looks up; subclasses, shared modules and the report
    need `aihwkit_nabn.convert_to_noise_aware`. Only aihwkit's torch tile and ours get noise-aware layers. With any
    other configuration (for training, for the compiled tile, quantized) or a `tile_module_class`, aihwkit converts the
    layer, or leaves it digital, as it does without. BatchNorm is noise-aware with every configuration for inference.
    Doing it twice changes nothing.
    """
    conversion_map = aihwkit_conversion._DEFAULT_CONVERSION_MAP
    for digital, analog in _forms().items():
        if digital not in _replaced:
            _replaced[digital] = conversion_map.get(digital)
        conversion_map[digital] = _entry(analog, _replaced[digital])
    aihwkit_conversion._DEFAULT_DIGITAL_CONVERSION_SET.update(_analog())


def unregister() -> None:
    """Give aihwkit's conversion its own layers back. Nothing happens where `register` was not called."""
    conversion_map = aihwkit_conversion._DEFAULT_CONVERSION_MAP
    for digital, analog in _replaced.items():
        if analog is None:
            conversion_map.pop(digital, None)
        else:
            conversion_map[digital] = analog
    aihwkit_conversion._DEFAULT_DIGITAL_CONVERSION_SET.difference_update(_analog())
    _replaced.clear()


def _entry(analog: Any, own: Any) -> type:
    """Return what stands in aihwkit's map: makes our layer where it can serve, else what aihwkit makes by itself."""
    serves = _is_for_inference if issubclass(analog, NoiseAwareBatchNorm) else _has_torch_tiles

    def from_digital(module: nn.Module, rpu_config: Any, tile_module_class: Any = None) -> nn.Module:
        if serves(rpu_config, tile_module_class):
            try:
                layer: nn.Module = analog.from_digital(module, copy.deepcopy(rpu_config))
                return layer
            except ConversionError:  # such as a dtype that these tiles do not take
                pass
        plain: nn.Module = module if own is None else own.from_digital(module, rpu_config, tile_module_class)
        return plain

    name = f"{analog.__name__} or {'digital' if own is None else own.__name__}"  # aihwkit prints it
    return type(name, (), {"from_digital": staticmethod(from_digital)})


def _is_for_inference(rpu_config: Any, _: object) -> bool:
    return hasattr(rpu_config, "noise_model")


def _has_torch_tiles(rpu_config: Any, tile_module_class: object) -> bool:
    """Whether the weights would lie on tiles whose forward pass this package knows.

    The compiled tile takes 2-d convolutions only: a model would become part noise-aware, part not.
    """
    return (
        tile_module_class is None
        and _is_for_inference(rpu_config, tile_module_class)
        and rpu_config.tile_class is TorchInferenceTile
        and rpu_config.simulator_tile_class in (TorchSimulatorTile, CrossbarTile)
        and rpu_config.tile_array_class is TileModuleArray
    )
