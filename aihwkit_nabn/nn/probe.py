"""Does the converted layer compute what the original does? Tried on a small random input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.operation import LAYER_OPERATIONS
from aihwkit_nabn.seeding import private_rng

Function = Callable[[Tensor], Any]

_STOCK_FORWARDS = {*(kind.forward for kind in LAYER_OPERATIONS), _BatchNorm.forward, nn.SyncBatchNorm.forward}
# What the stock forward passes call.
_HELPERS: dict[str, set[Any]] = {
    "_conv_forward": {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.conv._ConvNd)},
    "_output_padding": {nn.modules.conv._ConvTransposeNd._output_padding},
    "__call__": {nn.Module.__call__},
}


def take_as_stock(kind: type[nn.Module]) -> None:
    """Take the forward pass of `kind` for the one its analog form computes."""
    _STOCK_FORWARDS.add(kind.forward)


def has_stock_forward(module: nn.Module) -> bool:
    """Whether the module's forward pass is torch's own, so that nothing needs to be tried."""
    if "forward" in module.__dict__ or type(module).forward not in _STOCK_FORWARDS:
        return False
    kept = ((name, getattr(type(module), name, None), stock) for name, stock in _HELPERS.items())
    return all(own is None or (own in stock and name not in module.__dict__) for name, own, stock in kept)


def differs(original: nn.Module, converted: nn.Module) -> str:
    """Return why the two are not the same function on random inputs; empty when they are.

    Both are run in eval mode on copies, so neither is changed.
    """
    return first_difference(original, _without_hooks(original), _without_hooks(converted))


def _without_hooks(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module).eval()
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    return twin


def first_difference(
    layer: nn.Module, original: Function, other: Function, shapes: list[tuple[int, ...]] | None = None
) -> str:
    """Return why two functions differ on random inputs that suit `layer`; empty when they are the same.

    Sizes that `original` does not take are left out.
    """
    failures = []
    shapes = trial_shapes(layer) if shapes is None else shapes
    for shape in shapes:
        x = trial_input(layer, shape)
        try:
            with torch.no_grad(), private_rng(0, torch_only=False):
                expected = original(x)
        except Exception as error:  # whatever a class of the user's raises
            failures.append(f"its forward pass failed on a trial input of shape {shape}: {error}")
            continue
        try:
            with torch.no_grad(), private_rng(0, torch_only=False):
                got = other(x)
        except NabnError as error:
            return str(error)
        except Exception as error:
            return f"what is to replace it failed on a trial input of shape {shape}: {error}"
        reason = _difference(expected, got)
        if reason:
            return reason
    return failures[0] if len(failures) == len(shapes) else ""


def _difference(expected: Any, got: Any) -> str:
    pairs = list(zip(tree_leaves(expected), tree_leaves(got), strict=False))
    if len(tree_leaves(got)) != len(pairs) or not any(isinstance(e, Tensor) for e, _ in pairs):
        return "its forward pass does not return one tensor of the usual shape"
    for e, g in pairs:
        if not isinstance(e, Tensor):
            continue
        if not isinstance(g, Tensor) or e.shape != g.shape:
            return "its forward pass does not return one tensor of the usual shape"
        difference = float((e - g).abs().max() / e.abs().max().clamp(min=1e-12)) if e.numel() else 0.0
        if not difference <= 1e-4:
            return (
                "its own forward pass computes something different from the plain layer "
                f"(relative difference {difference:.1e})"
            )
    return ""


def trial_input(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Return a random input of the layer's type."""
    tensors = (*layer.parameters(), *layer.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    with private_rng(0, torch_only=False):
        return torch.randn(shape, dtype=like.dtype).to(like.device)


def trial_shapes(module: Any) -> list[tuple[int, ...]]:
    """Return small input shapes that a convolution, linear or normalization layer may take.

    Subclasses that pad by themselves differ at odd or even sizes only, so there are both, and sizes below the kernel's.
    """
    if isinstance(module, nn.Linear):
        n = module.in_features
        return [(2, n), (2, 3, n), (n,), (2, n, 5), (2, 3, 4, n), (2, n, 3, 4)]
    if hasattr(module, "in_channels") and hasattr(module, "kernel_size"):
        spans = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        steps = list(zip(spans, module.stride, strict=True))
        sizes = [
            [span + step for span, step in steps],
            [span + step + 1 for span, step in steps],
            [span + 2 * step + i % 2 for i, (span, step) in enumerate(steps)],
            [span + step + (i + 1) % 2 for i, (span, step) in enumerate(steps)],
            [max(span - 1, 1) for span in spans],
        ]
        return [(2 - i % 2, module.in_channels, *size) for i, size in enumerate(sizes)]
    n_channels = len(next(t for t in (*module.buffers(), *module.parameters()) if t.dim() == 1))
    ranks = [rank for rank, kinds in _RANKS.items() if isinstance(module, kinds)] or [2]
    return [(2, n_channels, *(3,) * rank) for rank in ranks]


_RANKS = {
    3: (nn.BatchNorm3d, nn.InstanceNorm3d),
    2: (nn.BatchNorm2d, nn.InstanceNorm2d),
    1: (nn.BatchNorm1d, nn.InstanceNorm1d),
    0: (nn.BatchNorm1d,),
}
