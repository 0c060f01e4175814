"""What a converted layer takes over from its original, besides the weights."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Any

from torch import nn

from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn.operation import OwnForward
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


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_KINDS = ("_parameters", "_buffers", "_modules")


def carry_everything(source: nn.Module, target: nn.Module, *, without: Iterable[str]) -> None:
    """Let `target` share whatever a method of `source` may look for: attributes, parameters, buffers and children.

    Names in `without` are left out: `target` provides them in its own way.

    Raises:
        ConversionError: both have something else under the same name.
    """
    given = {name: value for name, value in vars(source).items() if name not in _OF_EVERY_MODULE}
    theirs = {name: value for kind in (given, *(vars(source)[k] for k in _KINDS)) for name, value in kind.items()}
    for name in (*without, "forward"):
        theirs.pop(name, None)
    ours = set(vars(target)).union(*(vars(target)[kind] for kind in _KINDS)) - _OF_EVERY_MODULE - {*without, "forward"}
    for name in sorted({*theirs, *ours}):
        if name in theirs:
            free = not hasattr(type(target), name) and (name not in ours or getattr(target, name) is theirs[name])
        else:
            free = not hasattr(type(source), name)
        if not free:
            raise ConversionError(f"its attribute {name!r} has a name that {type(target).__name__} uses itself")
    for kind in _KINDS:
        vars(target)[kind].update({k: v for k, v in vars(source)[kind].items() if k in theirs})
    vars(target).update({name: value for name, value in given.items() if name in theirs})
    target._non_persistent_buffers_set |= source._non_persistent_buffers_set
    vars(target)["_carried"] = frozenset(theirs)


def given_back(target: Any, own: OwnForward) -> Any:
    """Return a digital layer with copies of what `carry_everything` carried; the children digital."""
    new = object.__new__(own.kind)
    nn.Module.__init__(new)
    memo: dict[int, Any] = {}
    for name, child in target._modules.items():
        if name in target._carried and hasattr(type(child), "to_digital"):
            memo[id(child)] = type(child).to_digital(child)

    def copies(values: dict[str, Any]) -> dict[str, Any]:
        return copy.deepcopy({name: value for name, value in values.items() if name in target._carried}, memo)

    for kind in _KINDS:
        vars(new)[kind].update(copies(vars(target)[kind]))
    vars(new).update(copies(vars(target)))
    new._non_persistent_buffers_set.update(target._non_persistent_buffers_set & set(new._buffers))
    if own.function is not own.kind.forward:
        new.forward = types.MethodType(own.function, new)
    return new
