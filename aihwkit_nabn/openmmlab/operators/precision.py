"""How the operators compute: half precision in single, gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """Return `x` in float32 if it is of half precision, else as it is; torchvision's CPU kernels know no half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of ``(function(*inputs) * grad_output).sum()`` with respect to the inputs.

    mmcv's operators have their backward passes apart from the forward ones, so the forward pass is computed again.
    """
    with torch.enable_grad():
        leaves = [at_least_single(x).detach().requires_grad_() for x in inputs]
        output = function(*leaves)
    if not output.requires_grad:  # nothing was sampled
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
