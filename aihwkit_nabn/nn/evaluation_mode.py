"""Eval mode inside a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module | None) -> Iterator[None]:
    """Put the models in eval mode inside the block and give every module its own flag back after it.

    What `nn.Module.compile` has compiled in place runs uncompiled there: every watched pass would be compiled anew.
    """
    modules = [module for model in models if model is not None for module in model.modules()]
    before = [(module, module.training, module._compiled_call_impl) for module in modules]
    try:
        for module in modules:
            module.training = False
            if module._compiled_call_impl is not None:
                module._compiled_call_impl = None
        yield
    finally:
        for module, training, compiled in before:
            module.training = training
            if compiled is not None:
                module._compiled_call_impl = compiled
