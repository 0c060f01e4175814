"""Layers that a model holds beside its module tree: lists, tuples and dictionaries of layers, partials over them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from aihwkit_nabn.errors import ConversionError

# How deep containers may lie in one another.
_DEPTH = 8


def rewire(model: nn.Module, replaced: dict[int, nn.Module]) -> None:
    """Put what takes a layer's place into the plain containers that hold the layer too, in place.

    Closures and methods kept of a layer cannot be reached; `verification` finds them.

    Args:
        model: A converted model, which nobody else holds.
        replaced: What took the place of each module, by the module's id.
    """
    for module in list(model.modules()):
        for name, value in list(module.__dict__.items()):
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            new = _renewed(value, replaced, 0)
            if new is not value:
                module.__dict__[name] = new


def _renewed(value: Any, replaced: dict[int, nn.Module], depth: int) -> Any:
    """Return the value with every layer renewed; the same object where there is none."""
    if isinstance(value, nn.Module):
        return replaced.get(id(value), value)
    if depth > _DEPTH:
        return value
    renew: Callable[[Any], Any] = functools.partial(_renewed, replaced=replaced, depth=depth + 1)
    if isinstance(value, list):
        for index, entry in enumerate(value):
            value[index] = renew(entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            value[key] = renew(entry)
    elif isinstance(value, (tuple, set, frozenset)):
        entries = [renew(entry) for entry in value]
        if any(new is not old for new, old in zip(entries, value, strict=True)):
            return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    elif isinstance(value, functools.partial):
        function, args, keywords = renew(value.func), renew(value.args), renew(dict(value.keywords))
        changed = any(keywords[key] is not entry for key, entry in value.keywords.items())
        if changed or function is not value.func or args is not value.args:
            return functools.partial(function, *args, **keywords)
    return value


def check_not_compiled(model: nn.Module) -> None:
    """Raise where a layer lies in a wrapper of `torch.compile`, which goes on running the digital layer.

    Raises:
        ConversionError: names the first one.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
            place = f"module {name!r}" if name else "the model"
            raise ConversionError(
                f"{place} was compiled by torch.compile, which keeps the digital layers; convert the model first and "
                "compile the result"
            )
