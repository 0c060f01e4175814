"""Content-aware upsampling, CARAFE (Wang et al. 2019, arXiv 1905.02188)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_single, gradients


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
    output.copy_(_upsampled(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, grad_features: Tensor, grad_masks: Tensor, **options: int
) -> None:
    """Write the gradients with respect to features and masks; shapes as in `carafe_naive_forward`."""
    found = gradients(lambda x, w: _upsampled(x, w, **options), (features, masks), grad_output)
    grad_features.copy_(found[0])
    grad_masks.copy_(found[1])


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


def _upsampled(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    height, width = features.shape[2:]
    x = at_least_single(features).unflatten(1, (group_size, -1))
    w = at_least_single(masks).reshape(len(x), group_size, kernel_size**2, height, scale_factor, width, scale_factor)
    padded = F.pad(x, ((kernel_size - 1) // 2,) * 4)
    out = x.new_zeros(*x.shape[:4], scale_factor, width, scale_factor)
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        seen = padded[..., row : row + height, column : column + width]
        out += seen[..., :, None, :, None] * w[:, :, None, tap]
    return out.reshape(*features.shape[:2], height * scale_factor, width * scale_factor)
