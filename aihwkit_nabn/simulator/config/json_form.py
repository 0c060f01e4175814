"""RPU configurations as JSON values and back, without pickle: what is read can only name classes that are known."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import math
import pkgutil
from typing import Any

import numpy as np
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator import configs, parameters
from aihwkit.simulator.parameters.base import RPUConfigBase

from aihwkit_nabn.errors import NabnError, suggestion
from aihwkit_nabn.noise import NOISE_MODELS
from aihwkit_nabn.noise.base import WeightNoiseModel
from aihwkit_nabn.simulator.config.presets import get_preset
from aihwkit_nabn.simulator.product.physics.effect import EffectParameters, ReadoutEffect

# Modules of classes in files of version 0.1, and where the classes are now.
_MOVED = {
    "aihwkit_nabn.simulator.config": "aihwkit_nabn.simulator.config.rpu_config",
    "aihwkit_nabn.simulator.presets": "aihwkit_nabn.simulator.config.presets",
}
_FAMILIES = (
    RPUConfigBase,
    BaseNoiseModel,
    BaseDriftCompensation,
    BaseConductanceConverter,
    EffectParameters,
    ReadoutEffect,
)


def config_to_json(config: RPUConfigBase) -> dict[str, Any]:
    """Return a configuration as JSON values that `config_from_json` reads.

    Raises:
        NabnError: it holds something that has no such form; the message says where.
    """
    encoded: dict[str, Any] = _encode(config, "rpu_config")
    return encoded


def config_from_json(content: Any) -> Any:
    """Return the configuration that `config_to_json` was given.

    Raises:
        NabnError: the content is malformed, or names a class that is not known here.
    """
    config = _decode(content, "rpu_config", known_classes())
    if not isinstance(config, RPUConfigBase):
        raise NabnError(f"rpu_config must be an aihwkit RPU configuration, got {type(config).__name__}")
    return config


def known_classes() -> dict[str, type]:
    """Return the classes a configuration can be made of, by name: aihwkit's, ours, and those derived from them."""
    for name in NOISE_MODELS.names():
        get_preset(name)  # the class of a preset is made when it is first asked for
    found: dict[str, type] = {}
    for package in (parameters, configs):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and (dataclasses.is_dataclass(value) or issubclass(value, enum.Enum)):
                    found[_name(value)] = value
    waiting = list(_FAMILIES)
    while waiting:
        cls = waiting.pop()
        found[_name(cls)] = cls
        waiting += cls.__subclasses__()
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": _name(type(value)), "name": value.name}
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.ndarray):
        return {"array": [_encode(item, where) for item in value.reshape(-1).tolist()], "shape": list(value.shape)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict):
        pairs = [[_encode(key, where), _encode(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {"dict": pairs}
    if isinstance(value, _FAMILIES) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        fields = {name: _encode(item, f"{where}.{name}") for name, item in _fields(value, where).items()}
        return {"object": _name(type(value)), "fields": fields}
    raise NabnError(f"{where} cannot be stored: {type(value).__name__} has no form in a file")


def _fields(value: Any, where: str) -> dict[str, Any]:
    """Return what an object is made of; classes among it must be the default ones, which are not stored."""
    if isinstance(value, WeightNoiseModel):
        return value.options()
    if not dataclasses.is_dataclass(value):
        return dict(vars(value))
    fields = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if not isinstance(item, type):
            fields[field.name] = item
        elif item is not _default(field):
            raise NabnError(f"{where}.{field.name} cannot be stored: it is not the default, got {_name(item)}")
    return fields


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory()


def _decode(content: Any, where: str, classes: dict[str, type]) -> Any:
    if content is None or isinstance(content, (bool, int, float, str)):
        return content
    if isinstance(content, list):
        return [_decode(item, f"{where}[{index}]", classes) for index, item in enumerate(content)]
    keys = set(content) if isinstance(content, dict) else set()
    if keys == {"float"} and content["float"] in ("inf", "-inf", "nan"):
        return float(content["float"])
    if keys == {"tuple"} and isinstance(content["tuple"], list):
        return tuple(_decode(content["tuple"], where, classes))
    try:
        if keys == {"array", "shape"}:
            return np.array(_decode(content["array"], where, classes)).reshape(content["shape"])
        if keys == {"dict"} and isinstance(content["dict"], list):
            pairs = content["dict"]
            return {_decode(key, where, classes): _decode(item, f"{where}[{key!r}]", classes) for key, item in pairs}
    except (ValueError, TypeError) as error:
        raise NabnError(f"{where} is malformed: {error}") from error
    if keys == {"enum", "name"}:
        members = getattr(_class(content["enum"], where, classes, enum.Enum), "__members__", {})
        if content["name"] not in members:
            raise NabnError(f"{where} must be one of {', '.join(members)}, got {content['name']!r}")
        return members[content["name"]]
    if keys == {"object", "fields"} and isinstance(content["fields"], dict):
        cls = _class(content["object"], where, classes, object)
        fields = {name: _decode(item, f"{where}.{name}", classes) for name, item in content["fields"].items()}
        return _build(cls, fields, where)
    raise NabnError(f"{where} is malformed: {str(content)[:80]}")


def _class(name: Any, where: str, classes: dict[str, type], base: type) -> type:
    module, dot, own = str(name).rpartition(".")
    cls = classes.get(f"{_MOVED.get(module, module)}{dot}{own}") if isinstance(name, str) else None
    if cls is None or not issubclass(cls, base):
        raise NabnError(
            f"{where} is of the class {name!r}, which is not known here{suggestion(str(name), list(classes))}; "
            "import the file that defines it"
        )
    return cls


def _build(cls: type, fields: dict[str, Any], where: str) -> Any:
    if issubclass(cls, WeightNoiseModel):
        try:
            return cls(**fields)
        except TypeError as error:
            raise NabnError(f"{where}: {error}") from error
    if issubclass(cls, enum.Enum):
        raise NabnError(f"{where} is malformed: {cls.__name__} is an enumeration")
    made = object.__new__(cls)
    if dataclasses.is_dataclass(cls):
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise NabnError(f"{where} has the unknown field {name!r}{suggestion(name, list(known))}")
        for name, field in known.items():
            # What the file does not say is a class, or newer than the file.
            made.__dict__[name] = fields[name] if name in fields else _default(field)
    else:
        made.__dict__.update(fields)
    return made
