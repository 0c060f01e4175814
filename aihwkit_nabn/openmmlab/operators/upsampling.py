"""Content-aware upsampling, CARAFE (Wang et al. 2019, arXiv 1905.02188)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_single


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write, for every output position, its kernel's weighted sum of the features around it into `output`.

    Args:
        features: ``[batch, channels, height, width]``.
        masks: The kernels, ``[batch, group_size * kernel_size ** 2, height * scale, width * scale]``.
        output: ``[batch, channels, height * scale, width * scale]``, overwritten.
        kernel_size: Odd; outside the map the features are zero.
        group_size: The channels fall into this many groups with kernels of their own.
        scale_factor: An integer.
    """
    x, w = _split(features, masks, group_size, scale_factor)
    out = x.new_zeros(*x.shape[:4], scale_factor, x.shape[4], scale_factor)
    for tap, shifted in enumerate(_shifted(x, kernel_size)):
        out += shifted[..., :, None, :, None] * w[:, :, None, tap]
    output.copy_(out.reshape(output.shape))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_features: Tensor,
    grad_masks: Tensor,
    *,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients with respect to features and masks; shapes as in `carafe_naive_forward`."""
    x, w = _split(features, masks, group_size, scale_factor)
    groups, height, width = x.shape[1], *x.shape[3:]
    grad = _pieces(grad_output, groups, scale_factor)
    reach = (kernel_size - 1) // 2
    padded = F.pad(torch.zeros_like(x), (reach,) * 4)
    taps = []
    for tap, shifted in enumerate(_shifted(x, kernel_size)):
        y, z = divmod(tap, kernel_size)
        taps.append((grad * shifted[..., :, None, :, None]).sum(2))
        padded[..., y : y + height, z : z + width] += (grad * w[:, :, None, tap]).sum((4, 6))
    inner = padded[..., reach : reach + height, reach : reach + width]
    grad_features.copy_(inner.reshape(grad_features.shape))
    grad_masks.copy_(torch.stack(taps, 2).reshape(grad_masks.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    kept_features: Tensor,
    kept_output: Tensor,
    kept_masks: Tensor,
    output: Tensor,
    **options: int,
) -> None:
    """As `carafe_naive_forward`; `kept_features` is what `carafe_backward` gets."""
    kept_features.copy_(features)
    carafe_naive_forward(features, masks, output, **options)


def carafe_backward(
    grad_output: Tensor,
    kept_features: Tensor,
    masks: Tensor,
    work_output: Tensor,
    work_input_high: Tensor,
    work_input: Tensor,
    work_masks: Tensor,
    grad_features: Tensor,
    grad_masks: Tensor,
    **options: int,
) -> None:
    """As `carafe_naive_backward`; mmcv's work space is not needed."""
    carafe_naive_backward(grad_output, kept_features, masks, grad_features, grad_masks, **options)


def _split(features: Tensor, masks: Tensor, groups: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return features ``[n, groups, channels, h, w]`` and kernels ``[n, groups, taps, h, scale, w, scale]``."""
    return at_least_single(features).unflatten(1, (groups, -1)), _pieces(masks, groups, scale)


def _pieces(x: Tensor, groups: int, scale: int) -> Tensor:
    """Return what is of the output's size as ``[n, groups, channels, h, scale, w, scale]``."""
    return at_least_single(x).unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))


def _shifted(x: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """Yield the features that each of the kernel's elements sees, row by row."""
    reach, (height, width) = (kernel_size - 1) // 2, x.shape[-2:]
    padded = F.pad(x, (reach,) * 4)
    for y in range(kernel_size):
        for z in range(kernel_size):
            yield padded[..., y : y + height, z : z + width]
