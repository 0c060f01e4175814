"""Regions of a map: their bins, samples in those, and the map's values between pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# How many sampled values are held at once; the regions are taken in pieces.
PIECE = 2**24


@dataclass(frozen=True)
class Bins:
    """The bins of regions on the map.

    Attributes:
        start: Upper left corners, y before x, ``[n, 2]``.
        extent: Heights and widths, ``[n, 2]``.
        grid: Samples per bin in each direction, ``[n, 2]``.
        size: Bins in each direction.
    """

    start: Tensor
    extent: Tensor
    grid: Tensor
    size: tuple[int, int]

    @classmethod
    def of(
        cls, rois: Tensor, size: tuple[int, int], scale: float, ratio: int, half: bool, least: float | None = None
    ) -> Bins:
        """Return the bins of `rois`, ``[n, 5]``, on a map of `scale` times the image's size.

        Args:
            rois: The regions.
            size: Bins in each direction.
            scale: Size of the map over that of the image.
            ratio: Samples per bin and direction; 0: as many as the bin has pixels.
            half: Whether the middle of a pixel is half a pixel from its edge.
            least: Of the regions' heights and widths.
        """
        shift = 0.5 if half else 0.0
        start = rois[:, [2, 1]] * scale - shift
        extent = rois[:, [4, 3]] * scale - shift - start
        if least is not None:
            extent = extent.clamp(min=least)
        if ratio > 0:
            grid = torch.full_like(extent, ratio).long()
        else:
            grid = (extent / extent.new_tensor(size)).ceil().long().clamp(min=0)
        return cls(start, extent, grid, size)

    def samples(self, channels: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield which regions, and the y and x of their samples, ``[regions, rows, columns, samples]``.

        Regions with the same number of samples come together; those without any do not come.
        """
        for rows, columns in self.grid.unique(dim=0).tolist():
            if not rows * columns:
                continue
            alike = (self.grid == self.grid.new_tensor([rows, columns])).all(1).nonzero()[:, 0]
            step = max(PIECE // (channels * self.size[0] * self.size[1] * rows * columns), 1)
            for chosen in alike.split(step):
                y, x = (self._positions(chosen, dim, count) for dim, count in ((0, rows), (1, columns)))
                shape = (len(chosen), *self.size, rows * columns)
                full = (len(chosen), *self.size, rows, columns)
                yield (
                    chosen,
                    y[:, :, None, :, None].expand(full).reshape(shape),
                    x[:, None, :, None, :].expand(full).reshape(shape),
                )

    def _positions(self, chosen: Tensor, dim: int, count: int) -> Tensor:
        """Return the coordinates of the samples along one direction, ``[regions, bins, count]``."""
        n = self.size[dim]
        start, width = self.start[chosen, dim].view(-1, 1, 1), (self.extent[chosen, dim] / n).view(-1, 1, 1)
        bins = torch.arange(n, device=start.device).view(1, -1, 1)
        steps = torch.arange(count, device=start.device, dtype=start.dtype) + 0.5
        return start + bins * width + steps * width / count


def finite(rois: Tensor) -> Tensor:
    """Return regions of which those that hold NaN or infinity are empty ones outside the map; kernels crash on them."""
    outside = rois.new_tensor([0.0, -6e4, -6e4, -6e4, -6e4])
    return torch.where(rois.isfinite().all(1, keepdim=True), rois, outside)


def bilinear(x: Tensor, image: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Sample maps between their pixels' middles.

    Within a pixel outside the map the nearest edge counts, farther out 0.

    Args:
        x: ``[batch, channels, height, width]``.
        image: Which of the batch, ``[n]``.
        y: ``[n, channels or 1, ...]``, in pixels.
        z: The x, of the same shape.

    Returns:
        ``[n, channels, ...]``.
    """
    height, width = x.shape[2:]
    inside = (y >= -1) & (y <= height) & (z >= -1) & (z <= width)
    y, z = y.clamp(0, height - 1), z.clamp(0, width - 1)
    top, left = y.detach().floor().long(), z.detach().floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    ones = (1,) * (y.dim() - 2)
    picture = image.view(-1, 1, *ones)
    channel = torch.arange(x.shape[1], device=x.device).view(1, -1, *ones)
    down, over = y - top, z - left
    upper = x[picture, channel, top, left] * (1 - over) + x[picture, channel, top, right] * over
    lower = x[picture, channel, bottom, left] * (1 - over) + x[picture, channel, bottom, right] * over
    return (upper * (1 - down) + lower * down).masked_fill(~inside, 0)
