"""What a model holds and what tensors are, to compare."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# aihwkit keeps a parameter beside each tile that stands for its weights and holds none; from 1.2 on, reading it raises.
PLACEHOLDER = "analog_ctx"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers, those outside the state dict included."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in found if not name.endswith(PLACEHOLDER)}


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the tensors of the state dict."""
    state = [(name, value) for name, value in model.state_dict().items() if not name.endswith(PLACEHOLDER)]
    return {name: value.clone() for name, value in state if isinstance(value, Tensor)}


def bits(model: nn.Module) -> dict[str, Any]:
    """Return every bit of a model that could be changed: tensors, modes, classes, hooks, what asks for gradients."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        tensors = {k: v for k, v in {**module._parameters, **module._buffers}.items() if k != PLACEHOLDER}
        flags = [getattr(module, field, None) for field in ("enabled", "calibration_enabled", "live", "observer")]
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        state[name] = type(module), module.training, hooks, flags
        for key, value in tensors.items():
            state[f"{name}.{key}"] = value is None or (value.detach().clone(), value.requires_grad, value.grad is None)
    return state


def outputs(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return what a model makes of each batch."""
    with torch.no_grad():
        return [model(batch) for batch in batches]


def equal(one: Any, other: Any) -> bool:
    """Return whether two tensors are the same to the last bit, or all those in two mappings or sequences."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return one is other or bool(one == other)


def same_steps(got: Tensor, expected: Tensor, share: float = 1e-3) -> bool:
    """Return whether two outputs are the same but for a few on the edge between two levels of a converter."""
    different = (got - expected).abs() > 2e-5 * expected.abs().max()
    return got.shape == expected.shape and int(different.sum()) <= max(2.0, share * got.numel())


def assert_moments(sample: Tensor, mean: float, std: float) -> None:
    """Hold a normal sample against its mean and spread, within four standard errors."""
    assert abs(sample.mean() - mean) < 4 * std / math.sqrt(sample.numel())
    assert abs(sample.std() - std) < 4 * std / math.sqrt(2 * sample.numel())


def generator_states() -> list[Any]:
    """Return where the global generators of torch, numpy and Python stand; compare with ``==``."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]
