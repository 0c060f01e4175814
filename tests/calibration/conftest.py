"""What the calibration tests compare: every bit of a model that calibration could change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.tensors import PLACEHOLDER


def _bits(model: nn.Module) -> list[Any]:
    state: list[Any] = []
    for name, module in model.named_modules():
        tensors = {k: v for k, v in {**module._parameters, **module._buffers}.items() if k != PLACEHOLDER}
        state.append((name, "training", module.training))
        state.append((name, "hooks", len(module._forward_hooks) + len(module._forward_pre_hooks)))
        for field in ("enabled", "calibration_enabled", "live", "observer"):
            state.append((name, field, getattr(module, field, None)))
        for key, value in tensors.items():
            state.append((name, key, None if value is None else value.detach().clone()))
            state.append((name, f"{key} grad", None if value is None else (value.requires_grad, value.grad is None)))
    return state


def _same(one: list[Any], other: list[Any]) -> bool:
    if len(one) != len(other):
        return False
    for (name, key, a), (other_name, other_key, b) in zip(one, other, strict=True):
        equal = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a is b or a == b
        if (name, key) != (other_name, other_key) or not equal:
            return False
    return True


@pytest.fixture
def bits() -> Callable[[nn.Module], list[Any]]:
    """Return ``bits(model)``."""
    return _bits


@pytest.fixture
def same() -> Callable[[list[Any], list[Any]], bool]:
    """Return ``same(bits, bits)``."""
    return _same
