"""Deformable convolutions (Dai et al. 2017, arXiv 1703.06211; Zhu et al. 2018, arXiv 1811.11168), by torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .precision import at_least_single, gradients


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **geometry: Any
) -> None:
    """Write the convolution, ``[batch, out, out_height, out_width]``, into `output`.

    Args:
        input: ``[batch, channels, height, width]``.
        weight: ``[out, channels / groups, kernel_height, kernel_width]``.
        offset: ``[batch, deform_groups * kernel * 2, out_height, out_width]``, each y before its x, in pixels.
        output: Overwritten.
        buffers: mmcv's work space; not needed.
        geometry: mmcv's keywords; the numbers of groups follow from the shapes.
    """
    x, moved, kernel = (at_least_single(t) for t in (input, _numbers(offset), weight))
    output.copy_(deform_conv2d(x, moved, kernel, **_plain(geometry)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    *buffers: Tensor,
    **geometry: Any,
) -> None:
    """Write the gradients with respect to input and offset; shapes as in `deform_conv_forward`.

    That of the weight goes into mmcv's work space, where `deform_conv_backward_parameters` finds it.
    """
    plain = _plain(geometry)
    moved = _off_the_edge(offset, weight, plain)
    found = gradients(
        lambda x, moved, kernel: deform_conv2d(x, moved, kernel, **plain), (input, moved, weight), grad_output
    )
    grad_input.copy_(found[0])
    grad_offset.copy_(found[1])
    if buffers:
        buffers[0].resize_(weight.shape).copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    scale: float = 1,
    **geometry: Any,
) -> None:
    """Write the gradient with respect to the weight, times `scale`; shapes as in `deform_conv_forward`."""
    if buffers and buffers[0].shape == grad_weight.shape:
        grad_weight.copy_(buffers[0] * scale)
        buffers[0].resize_(0)
        return
    x, moved, plain = at_least_single(input), at_least_single(_numbers(offset)), _plain(geometry)
    kernel = x.new_zeros(grad_weight.shape)  # the gradient does not depend on it
    found = gradients(lambda weight: deform_conv2d(x, moved, weight, **plain), (kernel,), grad_output)
    grad_weight.copy_(found[0] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: Any,
) -> None:
    """Write the convolution into `output`; shapes as in `deform_conv_forward`.

    `mask`, ``[batch, deform_groups * kernel, out_height, out_width]``, is what each sample is multiplied with; `bias`,
    ``[out]``, counts if `with_bias`. `ones` and `columns` are mmcv's work space, which is not needed.
    """
    x, moved, factors, kernel = (at_least_single(t) for t in (input, _numbers(offset), mask, weight))
    added = at_least_single(bias) if with_bias else None
    output.copy_(deform_conv2d(x, moved, kernel, added, mask=factors, **_plain(geometry)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: Any,
) -> None:
    """Write the gradients with respect to all that enters `modulated_deform_conv_forward`."""
    plain = _plain(geometry)

    def convolution(x: Tensor, moved: Tensor, factors: Tensor, kernel: Tensor) -> Tensor:
        out: Tensor = deform_conv2d(x, moved, kernel, mask=factors, **plain)
        return out

    moved = _off_the_edge(offset, weight, plain)
    found = gradients(convolution, (input, moved, mask, weight), grad_output)
    for target, value in zip((grad_input, grad_offset, grad_mask, grad_weight), found, strict=True):
        target.copy_(value)
    if with_bias:
        grad_bias.copy_(at_least_single(grad_output).sum((0, 2, 3)))


_OUTSIDE = -6e4  # pixels; half precision knows it

# What torchvision calls mmcv's keywords: those of the plain convolution, then those of the modulated one.
_KEYWORDS = {
    "stride": (("dH", "dW"), ("stride_h", "stride_w")),
    "padding": (("padH", "padW"), ("pad_h", "pad_w")),
    "dilation": (("dilationH", "dilationW"), ("dilation_h", "dilation_w")),
}


def _plain(geometry: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return torchvision's keywords."""
    return {
        name: (geometry[pair[0]], geometry[pair[1]])
        for name, pairs in _KEYWORDS.items()
        for pair in pairs
        if pair[0] in geometry
    }


def _numbers(offset: Tensor) -> Tensor:
    """Return offsets that take samples at NaN outside the map, as mmcv does; torchvision's kernel crashes there."""
    return torch.nan_to_num(offset, nan=_OUTSIDE, posinf=_OUTSIDE, neginf=_OUTSIDE)


def _off_the_edge(offset: Tensor, weight: Tensor, plain: dict[str, tuple[int, int]]) -> Tensor:
    """Return the offsets with samples that lie one pixel above or left of the map moved farther out.

    Nothing is sampled there, and as in mmcv such an offset has no gradient; torchvision's is that of a sample a little
    nearer. New layers, whose offsets are zero, have many in their padding.
    """
    offset = _numbers(offset)
    position = at_least_single(offset).unflatten(1, (-1, *weight.shape[2:], 2)).clone()
    for dim in (0, 1):
        stride, padding, dilation = (plain[name][dim] for name in ("stride", "padding", "dilation"))
        taps = torch.arange(weight.shape[2 + dim], device=offset.device) * dilation
        places = torch.arange(offset.shape[2 + dim], device=offset.device) * stride - padding
        grid = taps[:, None] + places
        position[:, :, :, :, dim] += grid[:, None, :, None] if dim == 0 else grid[None, :, None, :]
    return torch.where(position.flatten(1, 4) == -1, offset - 1, offset)
