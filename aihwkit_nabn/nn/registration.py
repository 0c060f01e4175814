"""Our layers in aihwkit's own `convert_to_analog`."""

from __future__ import annotations

from aihwkit.nn import conversion as aihwkit_conversion
from torch import nn

from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.conversion import ANALOG_FORMS, NORMALIZATION_FORMS
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward
from aihwkit_nabn.nn.own_normalization import NoiseAwareNormalization

_replaced: dict[type[nn.Module], type | None] = {}


def _forms() -> dict[type[nn.Module], type]:
    return {**ANALOG_FORMS, **NORMALIZATION_FORMS, nn.SyncBatchNorm: NoiseAwareBatchNorm}


def _analog() -> set[type]:
    """What has a digital form to go back to."""
    return {*_forms().values(), NoiseAwareOwnForward, NoiseAwareNormalization}


def register() -> None:
    """Make aihwkit's plain `convert_to_analog` (and `convert_to_digital`) use the noise-aware layers.

    Works for BatchNorm and for layers whose exact class aihwkit looks up; subclasses, shared modules and the report
    need `aihwkit_nabn.convert_to_noise_aware`. Doing it twice changes nothing.
    """
    conversion_map = aihwkit_conversion._DEFAULT_CONVERSION_MAP
    for digital, analog in _forms().items():
        if digital not in _replaced:
            _replaced[digital] = conversion_map.get(digital)
        conversion_map[digital] = analog
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
