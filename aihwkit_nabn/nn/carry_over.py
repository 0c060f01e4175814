"""What a converted layer takes over from the layer it stands in for, besides its weights."""

from __future__ import annotations

from torch import nn

from aihwkit_nabn.nn.reparametrization import is_weight_hook

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def carry_over(source: nn.Module, target: nn.Module) -> None:
    """Give `target` what code around the layer reads from it (channels, stride, a framework's own marks) and its hooks.

    Attributes that `target` has already are left alone.
    """
    for name, value in source.__dict__.items():
        if name.startswith("_") or name == "training" or hasattr(type(target), name):  # properties are not evaluated
            continue
        if not hasattr(target, name):
            setattr(target, name, value)
    for name in _HOOKS:
        for key, hook in getattr(source, name).items():
            # Hooks that re-parametrise the weight have done their work: the weight has been copied.
            if not is_weight_hook(hook):
                getattr(target, name)[key] = hook
