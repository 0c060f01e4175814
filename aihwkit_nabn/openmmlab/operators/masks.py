"""Convolution at chosen places (guided anchoring) and the masks of point-wise spatial attention (PSANet)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_im2col_forward(
    image: Tensor,
    rows: Tensor,
    columns: Tensor,
    vectors: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write what a kernel sees at chosen places into `vectors`, ``[channels * kernel, places]``.

    The image is ``[1, channels, height, width]``, with zeros around it; rows and columns, ``[places]``, are in the
    output's coordinates. The stride is 1.
    """
    padded = F.pad(image[0], (pad_w, kernel_w, pad_h, kernel_h))
    y = rows[:, None, None] + torch.arange(kernel_h, device=image.device)[:, None]
    x = columns[:, None, None] + torch.arange(kernel_w, device=image.device)
    vectors.copy_(padded[:, y, x].permute(0, 2, 3, 1).reshape(vectors.shape))


def masked_col2im_forward(
    values: Tensor, rows: Tensor, columns: Tensor, image: Tensor, *, height: int, width: int, channels: int
) -> None:
    """Write values, ``[channels, places]``, to their places in `image`, ``[1, channels, height, width]``."""
    image[0, :, rows, columns] = values.to(image.dtype)


def psamask_forward(input: Tensor, output: Tensor, **geometry: int) -> None:
    """Lay each position's own mask over the whole map (Zhao et al. 2018, PSANet).

    Args:
        input: ``[batch, h_mask * w_mask, height, width]``, the masks, centred on their positions.
        output: ``[batch, height * width, height, width]``, overwritten. Type 1 (distribute) has a position's mask
            in its channel, type 0 (collect) has in channel p what all positions give to position p.
        geometry: mmcv's keywords.
    """
    channel, inside = _mask_index(geometry, input.device)
    n = input.shape[0]
    collected = input.gather(1, channel.expand(n, -1, -1, -1)).masked_fill(~inside, 0)
    output.copy_(_turned(collected, geometry))


def psamask_backward(grad_output: Tensor, grad_input: Tensor, **geometry: int) -> None:
    """Write the gradient of `psamask_forward`'s input."""
    channel, inside = _mask_index(geometry, grad_output.device)
    n = grad_output.shape[0]
    grad = _turned(grad_output, geometry).masked_fill(~inside, 0)
    grad_input.copy_(torch.zeros_like(grad_input).scatter_add_(1, channel.expand(n, -1, -1, -1), grad))


def _mask_index(geometry: dict[str, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which element of the mask at (h, w) lies on position p, and whether one does, ``[p, h, w]``."""
    height, width = geometry["h_feature"], geometry["w_feature"]
    h, w = torch.arange(height, device=device), torch.arange(width, device=device)
    y = h.view(-1, 1, 1, 1) - h.view(1, 1, -1, 1) + geometry["half_h_mask"]
    x = w.view(1, -1, 1, 1) - w.view(1, 1, 1, -1) + geometry["half_w_mask"]
    inside = (y >= 0) & (y < geometry["h_mask"]) & (x >= 0) & (x < geometry["w_mask"])
    channel = torch.where(inside, y * geometry["w_mask"] + x, 0)
    shape = (height * width, height, width)
    return channel.reshape(shape), inside.reshape(shape)


def _turned(x: Tensor, geometry: dict[str, int]) -> Tensor:
    """Exchange giving and receiving positions for type 1; its own inverse."""
    if geometry["psa_type"] == 0:
        return x
    return x.flatten(2).transpose(1, 2).reshape(x.shape)
