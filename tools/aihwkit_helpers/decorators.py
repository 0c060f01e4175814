"""Decorators that repeat a test class over kinds of tiles, layers and presets; names say which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parameterized import parameterized_class

Decorator = Callable[[type], type]


def _repeat(cases: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> Decorator:
    return parameterized_class(cases, class_name_func=lambda cls, _, case: f"{cls.__name__}_{key(case)}")


def _attributes(kind: type) -> dict[str, Any]:
    return {
        name: value for part in reversed(kind.__mro__) for name, value in vars(part).items() if not name.startswith("_")
    }


def parametrize_over_tiles(tiles: Sequence[type]) -> Decorator:
    """Repeat over kinds of tiles."""
    cases = [{**_attributes(tile), "parameter": tile.__name__} for tile in tiles]
    return _repeat(cases, lambda case: case["parameter"])


def parametrize_over_layers(
    layers: Sequence[type], tiles: Sequence[type], biases: Sequence[str | None] = ("digital",)
) -> Decorator:
    """Repeat over kinds of layers, on kinds of tiles, with each bias ("analog", "digital" or None)."""
    cases = [_on_tile(layer, tile, bias) for layer in layers for tile in tiles for bias in biases]
    return _repeat(cases, lambda case: case["parameter"])


def _on_tile(layer: type, tile: Any, bias: str | None) -> dict[str, Any]:
    def get_rpu_config(_: object, **kwargs: Any) -> Any:
        config = tile().get_rpu_config(**kwargs)
        config.mapping.digital_bias = bias == "digital"
        return config

    name = f"{layer.__name__}_{tile.__name__}_{'No' if bias is None else bias.capitalize()}Bias"
    return {
        **_attributes(layer),
        "parameter": name,
        "get_rpu_config": get_rpu_config,
        "tile_class": tile,
        "bias": bias is not None,
        "digital_bias": bias == "digital",
        "analog_bias": bias == "analog",
    }


def parametrize_over_presets(presets: Sequence[type]) -> Decorator:
    """Repeat over presets."""
    return _repeat([{"preset_cls": preset} for preset in presets], lambda case: case["preset_cls"].__name__)
