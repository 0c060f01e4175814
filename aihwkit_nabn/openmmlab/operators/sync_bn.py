"""The steps of mmcv's synchronized BatchNorm (``MMSyncBN``) that lie between its all-reduces.

Shapes: inputs ``[batch, channels, positions]``, statistics ``[channels]`` in float32, as mmcv makes them.
"""

from __future__ import annotations

from torch import Tensor


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write this process's means into `mean`."""
    mean.copy_(input.to(mean.dtype).mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write the mean squared distances from `mean`, which is all processes', into `var`."""
    var.copy_((input.to(mean.dtype) - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    *,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalise into `norm` and `output`, write `std` and move the running statistics by `momentum`."""
    std.copy_((var + eps).sqrt())
    norm.copy_((input.to(mean.dtype) - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.shape[0] * input.shape[2] * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.copy_(momentum * mean + (1 - momentum) * running_mean)
    running_var.copy_(momentum * unbiased + (1 - momentum) * running_var)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write this process's gradients of weight and bias."""
    grad = grad_output.to(norm.dtype)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input, given those of weight and bias, averaged over the processes."""
    count = norm.shape[0] * norm.shape[2]
    through = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_(weight[:, None] * (grad_output.to(norm.dtype) - through) / std[:, None])
