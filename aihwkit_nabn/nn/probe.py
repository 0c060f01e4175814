"""Does the converted layer compute what the original does? Tried on a small random input."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.seeding import private_rng

_STOCK_FORWARDS = {
    cls.forward
    for cls in (
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.modules.batchnorm._BatchNorm,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
    )
}
_STOCK_CONV_FORWARDS = {cls._conv_forward for cls in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def take_as_stock(kind: type[nn.Module]) -> None:
    """Take the forward pass of `kind` for the one its analog form computes."""
    _STOCK_FORWARDS.add(kind.forward)


def has_stock_forward(module: nn.Module) -> bool:
    """Whether the module's forward pass is torch's own, so that nothing needs to be tried."""
    if "forward" in module.__dict__ or type(module).forward not in _STOCK_FORWARDS:
        return False
    conv_forward = getattr(type(module), "_conv_forward", None)
    return conv_forward is None or conv_forward in _STOCK_CONV_FORWARDS


def differs(original: nn.Module, converted: nn.Module, shape: tuple[int, ...]) -> str:
    """Return why the two are not the same function on a random input of `shape`; empty when they are.

    Both are run in eval mode on copies, so neither is changed.
    """
    like = next((t for t in (*original.parameters(), *original.buffers()) if t.is_floating_point()), torch.empty(0))
    x = torch.randn(shape, dtype=like.dtype, generator=torch.Generator().manual_seed(0)).to(like.device)
    outputs = []
    for module in (original, converted):
        twin = copy.deepcopy(module).eval()
        twin._forward_hooks.clear()
        twin._forward_pre_hooks.clear()
        try:
            with torch.no_grad(), private_rng(0, torch_only=False):
                outputs.append(twin(x))
        except Exception as error:
            return f"its forward pass failed on a trial input of shape {shape}: {error}"
    expected, got = outputs
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return "its forward pass does not return one tensor of the usual shape"
    difference = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= 1e-4:
        return (
            f"its own forward pass computes something else than the plain layer (relative difference {difference:.1e})"
        )
    return ""


def trial_shape(module: Any) -> tuple[int, ...]:
    """Return a small input shape that a convolution, linear or BatchNorm layer takes."""
    if isinstance(module, nn.Linear):
        return (2, module.in_features)
    if hasattr(module, "in_channels") and hasattr(module, "kernel_size"):
        spans = (d * (k - 1) + 3 for k, d in zip(module.kernel_size, module.dilation, strict=True))
        return (2, module.in_channels, *spans)
    n_channels = len(next(t for t in (*module.buffers(), *module.parameters()) if t.dim() == 1))
    rank = next((r for c, r in ((nn.BatchNorm1d, 1), (nn.BatchNorm3d, 3)) if isinstance(module, c)), 2)
    return (2, n_channels, *(3,) * rank)
