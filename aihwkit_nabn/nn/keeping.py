"""Undoing what a run leaves in a model, and copies of batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Where torch keeps what is assigned to a module, by kind, and its hooks, which some networks add when they run.
_REGISTERED = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if "_hooks" in name and isinstance(value, dict))


@contextmanager
def kept(*models: nn.Module | None) -> Iterator[None]:
    """Give every module the attributes, the hooks and the values of its buffers back that it had before the block."""
    modules = [module for model in models if model is not None for module in model.modules()]
    attributes = [dict(module.__dict__) for module in modules]
    names = (*_REGISTERED, *_HOOKS)
    registered = [{name: dict(m.__dict__[name]) for name in names if name in m.__dict__} for m in modules]
    buffers = [(b, b.detach().clone()) for module in modules for b in module._buffers.values() if isinstance(b, Tensor)]
    try:
        yield
    finally:
        for module, before, inner in zip(modules, attributes, registered, strict=True):
            module.__dict__.clear()
            module.__dict__.update(before)
            for name, content in inner.items():
                own = module.__dict__[name]
                if {key: id(value) for key, value in own.items()} != {key: id(v) for key, v in content.items()}:
                    own.clear()
                    own.update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def assigned(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def copied(value: Any) -> Any:
    """Return a batch whose tensors are copies without history; some networks write into their inputs."""
    return mapped(value, lambda tensor: tensor.detach().clone())


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with `function` applied to the tensors in its lists, tuples and mappings, classes kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return remade(value, {key: mapped(part, function) for key, part in value.items()})
    if isinstance(value, (list, tuple)):
        parts = [mapped(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def remade(mapping: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """Return a mapping of the same class with other values, or a plain dictionary where it cannot be changed."""
    if not isinstance(mapping, MutableMapping):
        return content
    new = copy.copy(mapping)
    new.update(content)
    return new
