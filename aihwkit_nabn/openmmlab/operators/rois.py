"""What lies in regions of interest (RoIs): aligned, pooled, and pooled with learned offsets.

RoIs are rows of image number, x1, y1, x2, y2, in pixels of the image; `spatial_scale` takes them to the map's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor

from . import regions
from .precision import at_least_single, gradients
from .regions import Bins, bilinear, finite


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the mean or the largest of bilinear samples in each bin of each region (He et al. 2017) into `output`.

    Args:
        input: ``[batch, channels, height, width]``.
        rois: ``[n, 5]``.
        output: ``[n, channels, aligned_height, aligned_width]``, overwritten.
        argmax_y: Where the largest sample was taken, of `output`'s shape; not touched for means. -1 where there is
            none: with a `sampling_ratio` of 0 in regions without area, whose output is 0 (mmcv's is -10000).
        argmax_x: The same.
        aligned_height: Bins in a column.
        aligned_width: Bins in a row.
        spatial_scale: Size of the map over that of the image.
        sampling_ratio: Samples per bin and direction; 0: as many as the bin has pixels.
        pool_mode: 0 the largest, 1 the mean.
        aligned: Whether the middle of a pixel is half a pixel from its edge.
    """
    x = at_least_single(input)
    boxes = finite(rois.to(x))
    if pool_mode == 1:
        output.copy_(_means(x, boxes, aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned))
        return
    output.zero_()
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    size, least = (aligned_height, aligned_width), None if aligned else 1.0
    bins = Bins.of(boxes, size, spatial_scale, sampling_ratio, half=aligned, least=least)
    for chosen, y, z in bins.samples(x.shape[1]):
        values = bilinear(x, boxes[chosen, 0].long(), y[:, None], z[:, None])
        largest, place = values.max(-1)
        output[chosen] = largest.to(output.dtype)
        for target, places in ((argmax_y, y), (argmax_x, z)):
            found = places[:, None].expand(values.shape).gather(-1, place[..., None])[..., 0]
            target[chosen] = found.to(target.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    pool_mode: int,
    **options: Any,
) -> None:
    """Write the gradient of the input; arguments as in `roi_align_forward`."""
    grad = at_least_single(grad_output)
    boxes, x = finite(rois.to(grad)), grad.new_zeros(grad_input.shape)  # the gradient does not depend on the input
    if pool_mode == 1:
        found = gradients(lambda x: _means(x, boxes, **options), (x,), grad)
    else:
        image, y, z = boxes[:, 0].long(), at_least_single(argmax_y), at_least_single(argmax_x)
        # Where nothing was sampled, far outside; as in mmcv a sample that happens to lie there has no gradient either.
        y = torch.where(y == -1, -2.0, y)
        found = gradients(lambda x: bilinear(x, image, y[..., None], z[..., None])[..., 0], (x,), grad)
    grad_input.copy_(found[0])


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the largest value in each bin of each region (Girshick 2015) into `output`.

    Bins begin and end at whole pixels, which bins that meet in the middle of one share. torchvision's `roi_pool` rounds
    the regions first and so gives other values. Shapes are as in `roi_align_forward`; the last pixel of a region is
    inclusive. The output is 0 in bins outside the map, and `argmax` the place of the largest value, ``y * width + x``,
    or -1 where there is none.
    """
    x = at_least_single(input)
    boxes = finite(rois.to(x))
    output.zero_()
    argmax.fill_(-1)
    height, width = x.shape[2:]
    low, high = boxes[:, 1:3] * spatial_scale, (boxes[:, 3:5] + 1) * spatial_scale
    proper = (high > low).all(1).nonzero()[:, 0]
    if not len(proper):
        return
    rows = _bin_edges(low[:, 1], high[:, 1], pooled_height, height)
    columns = _bin_edges(low[:, 0], high[:, 0], pooled_width, width)
    most_rows, most_columns = (int((end - first).max()) for first, end in (rows, columns))
    step = max(regions.PIECE // max(x.shape[1] * pooled_height * pooled_width * most_rows * most_columns, 1), 1)
    pixels = x.flatten(2).transpose(1, 2)
    for chosen in proper.split(step):
        y, in_y = _members(rows, chosen)
        z, in_z = _members(columns, chosen)
        inside = (in_y[:, :, None, :, None] & in_z[:, None, :, None, :]).flatten(3)[:, None]
        place = (y[:, :, None, :, None] * width + z[:, None, :, None, :]).flatten(3)
        values = pixels[boxes[chosen, 0].long()[:, None], place.flatten(1)].transpose(1, 2)
        values = values.unflatten(2, place.shape[1:]).masked_fill(~inside, -torch.inf)
        largest, member = values.max(-1)
        there = inside.any(-1)
        output[chosen] = torch.where(there, largest, 0.0).to(output.dtype)
        found = place[:, None].expand(values.shape).gather(-1, member[..., None])[..., 0]
        argmax[chosen] = torch.where(there, found, -1).to(argmax.dtype)


def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **options: float) -> None:
    """Write the gradient of the input; arguments as in `roi_pool_forward`."""
    grad = at_least_single(grad_output)
    batch, channels, height, width = grad_input.shape
    image = rois[:, 0].long().view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=grad.device).view(1, -1, 1, 1)
    place = (image * channels + channel) * height * width + argmax
    there = argmax >= 0
    flat = grad.new_zeros(batch * channels * height * width)
    grad_input.copy_(flat.index_add_(0, place[there], grad[there]).reshape(grad_input.shape))


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    *,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the mean of samples in each bin, moved by offsets (Dai et al. 2017, arXiv 1703.06211), into `output`.

    Shapes and options are as in `roi_align_forward`. The offsets, ``[n, 2, pooled_height, pooled_width]`` or empty, are
    x before y, in parts of the region's size, and are multiplied with `gamma`.
    """
    moved = _DeformRoIPool(finite(rois), pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma)
    output.copy_(moved(at_least_single(input), at_least_single(offset)))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **options: Any,
) -> None:
    """Write the gradients of input and offsets; arguments as in `deform_roi_pool_forward`."""
    moved = _DeformRoIPool(finite(rois), **options)
    if not offset.numel():
        grad_input.copy_(gradients(lambda x: moved(x, offset), (input,), grad_output)[0])
        return
    found = gradients(moved, (input, offset), grad_output)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[1])


@dataclass(frozen=True)
class _DeformRoIPool:
    rois: Tensor
    pooled_height: int
    pooled_width: int
    spatial_scale: float
    sampling_ratio: int
    gamma: float

    def __call__(self, x: Tensor, offset: Tensor) -> Tensor:
        size = (self.pooled_height, self.pooled_width)
        bins = Bins.of(self.rois.to(x.dtype), size, self.spatial_scale, self.sampling_ratio, half=True)
        out = x.new_zeros(len(self.rois), x.shape[1], *size)
        for chosen, y, z in bins.samples(x.shape[1]):
            if offset.numel():
                by = self.gamma * bins.extent[chosen][:, :, None, None] * offset[chosen].flip(1)
                y, z = y + by[:, 0, ..., None], z + by[:, 1, ..., None]
            values = bilinear(x, self.rois[chosen, 0].long(), y[:, None], z[:, None])
            out = out.index_put((chosen,), values.mean(-1))
        return out


def _means(
    x: Tensor,
    boxes: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    if aligned and sampling_ratio <= 0:  # inverted regions have no samples; torchvision's CPU kernel fails on them
        boxes = torch.cat([boxes[:, :3], torch.maximum(boxes[:, 1:3], boxes[:, 3:])], 1)
    size = (aligned_height, aligned_width)
    out: Tensor = torchvision.ops.roi_align(x, boxes, size, spatial_scale, sampling_ratio, aligned)
    return out


def _bin_edges(low: Tensor, high: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the first pixel of each bin and the first one behind it, ``[n, bins]``."""
    width = (high - low)[:, None] / bins
    number = torch.arange(bins, device=low.device)
    first = (number * width + low[:, None]).floor().clamp(0, size).long()
    end = ((number + 1) * width + low[:, None]).ceil().clamp(0, size).long()
    return first, end


def _members(edges: tuple[Tensor, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels of each bin and which of them count, ``[n, bins, most]``."""
    first, end = (edge[chosen][..., None] for edge in edges)
    steps = torch.arange(max(int((end - first).max()), 1), device=first.device)
    pixels = first + steps
    counts = pixels < end
    return torch.where(counts, pixels, 0), counts
