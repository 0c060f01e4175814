"""Multi-scale deformable attention (Zhu et al. 2020, arXiv 2010.04159), by mmcv's own torch code.

mmcv runs that code on the CPU and asks for the operator on a GPU.
"""

from __future__ import annotations

from torch import Tensor

from .precision import at_least_single, gradients


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, *, im2col_step: int
) -> Tensor:
    """Return the weighted samples, ``[batch, queries, heads * channels]``.

    Args:
        value: ``[batch, keys, heads, channels]``, all levels one after the other.
        shapes: ``[levels, 2]``, height and width of each.
        starts: Where each level begins; follows from `shapes`.
        locations: ``[batch, queries, heads, levels, points, 2]``, x before y, as shares of width and height.
        weights: ``[batch, queries, heads, levels, points]``.
        im2col_step: mmcv's piece size; not needed.
    """
    x, places, factors = (at_least_single(t) for t in (value, locations, weights))
    return _attention(x, shapes, places, factors).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    *,
    im2col_step: int,
) -> None:
    """Write the gradients with respect to value, locations and weights."""
    found = gradients(lambda x, places, w: _attention(x, shapes, places, w), (value, locations, weights), grad_output)
    for target, gradient in zip((grad_value, grad_locations, grad_weights), found, strict=True):
        target.copy_(gradient)


def _attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Not at the top: mmcv.ops imports this package.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    out: Tensor = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    return out
