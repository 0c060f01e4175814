"""What a converted layer takes over from the layer it stands in for, besides its weights."""

from __future__ import annotations

from torch import nn

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
        if not name.startswith("_") and name != "training" and not hasattr(target, name):
            setattr(target, name, value)
    for name in _HOOKS:
        for key, hook in getattr(source, name).items():
            # Hooks that re-parametrise the weight have done their work: the weight has been copied.
            if not type(hook).__module__.startswith("torch.nn.utils"):
                getattr(target, name)[key] = hook
