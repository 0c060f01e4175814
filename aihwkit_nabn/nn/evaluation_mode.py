"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module | None) -> Iterator[None]:
    """Put the models in eval mode inside the block and give every module its own flag back after it."""
    flags = [(module, module.training) for model in models if model is not None for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training
