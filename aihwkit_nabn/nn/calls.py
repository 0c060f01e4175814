"""Watching calls of modules: arguments and results, however a module is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

# name, positional arguments, keyword arguments, output
Seen = Callable[[str, tuple[Any, ...], Mapping[str, Any], Any], None]

_level: ContextVar[int] = ContextVar("blocks of `unwatched` around", default=0)


@contextmanager
def unwatched() -> Iterator[None]:
    """Keep what is called inside the block from those who watch from outside it."""
    token = _level.set(_level.get() + 1)
    try:
        yield
    finally:
        _level.reset(token)


@contextmanager
def watched(modules: Mapping[str, nn.Module], seen: Seen) -> Iterator[None]:
    """Report every call of the given modules inside the block, ``module(x)`` and ``module.forward(x)`` alike.

    `seen` is called after a module's own forward pass and before its hooks.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(replaced_forward(module, _reporting(name, module.forward, seen)))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute `forward` inside the block, ``module(x)`` and ``module.forward(x)`` alike."""
    own = module.__dict__.get("forward")
    # torch's transformer layers call their parts only where one has a hook.
    handle = module.register_forward_hook(_nothing)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        handle.remove()
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return a call's first argument, however it was passed; None if there is none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _nothing(module: nn.Module, args: Any, output: Any) -> None:
    pass


def _reporting(name: str, forward: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    level = _level.get()

    def report(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if _level.get() == level:
            seen(name, args, kwargs, output)
        return output

    return report
