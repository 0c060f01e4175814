"""Weights that are computed from other parameters: weight_norm, spectral_norm, pruning, parametrizations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from aihwkit_nabn.errors import ConversionError


def is_weight_hook(hook: object) -> bool:
    """Whether a forward pre-hook is torch's own and computes a weight before each forward pass."""
    return type(hook).__module__.startswith("torch.nn.utils")


def copy_model(model: nn.Module, copies: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy; what hooks have computed, which torch refuses to copy, is copied without its history.

    `copies` takes in the copies of the model's parts, by the originals' ids.

    Raises:
        ConversionError: the model has weights without values, or holds something that cannot be copied.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise ConversionError(f"{empty!r} is on the meta device and has no values; load the model's weights first")
    held = (v for m in model.modules() for v in (*m.__dict__.values(), *m._buffers.values()))
    computed: dict[int, Any] = {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf}
    try:
        copies = {} if copies is None else copies
        copies.update(computed)
        return copy.deepcopy(model, copies)
    except Exception as error:  # whatever the model's own parts raise
        raise ConversionError(f"the model cannot be copied: {_uncopied(model, computed)}: {error}") from error


def _uncopied(model: nn.Module, computed: dict[int, Any]) -> str:
    """Return the first attribute that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value, dict(computed))
            except Exception:
                return f"attribute {f'{name}.{key}'.lstrip('.')!r}, a {type(value).__name__}"
    return type(model).__name__


def is_trainable(module: nn.Module) -> bool:
    """Whether a layer's weight, or what it is computed from, takes a gradient."""
    weight: Any = module.weight
    return (
        weight.requires_grad if isinstance(weight, nn.Parameter) else any(p.requires_grad for p in module.parameters())
    )


@torch.no_grad()
def refresh_weights(module: nn.Module) -> None:
    """Compute anew what hooks compute: since the last forward pass other parameters may have been loaded."""
    for hook in module._forward_pre_hooks.values():
        if is_weight_hook(hook):
            hook(module, ())


@torch.no_grad()
def make_weights_plain(module: nn.Module) -> None:
    """Turn computed weights into parameters of the values they have, in place."""
    if parametrize.is_parametrized(module):
        kept: Any = module.parametrizations
        values = {name: getattr(module, name).detach().clone() for name in kept}
        # torch's own removal would take the property away from the class, which copies share.
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    for hooks in (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if is_weight_hook(getattr(hook, "hook", hook)):  # torch wraps hooks that load
                if hasattr(hook, "remove"):
                    hook.remove(module)
                del hooks[key]


def plain_copy(module: nn.Module) -> Any:
    """Return a module that shares everything with this one, except that computed weights are plain parameters."""
    twin = object.__new__(type(module))  # torch refuses to copy what is parametrized
    vars(twin).update((name, copy.copy(v) if isinstance(v, dict) else v) for name, v in vars(module).items())
    make_weights_plain(twin)
    return twin
