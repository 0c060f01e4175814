"""How a layer's weight matrix meets its input: a matrix product, a convolution, a transposed convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """How a weight matrix ``[out, in]`` is applied: to the last dimension, or as a convolution in 1 to 3 dimensions.

    The rest is as in torch's convolutions. With groups, a row of the matrix holds the inputs of one group.
    """

    spatial_dims: int = 0
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def channel_dim(self) -> int:
        """Dimension of the channels in the output, counted from the end, so that unbatched inputs work."""
        return -(self.spatial_dims + 1)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return the matrix ``[out, in / groups * kernel]`` of a digital layer's weight."""
        return weight.reshape(weight.shape[0], -1)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return the digital layer's weight of a matrix; undoes `to_matrix`."""
        return matrix.reshape(matrix.shape[0], -1, *self.kernel_size) if self.spatial_dims else matrix

    def _pads(self) -> list[int]:
        """Padding as `F.pad` takes it: last dimension first, before and after."""
        if isinstance(self.padding, str):
            spans = zip(self.dilation, self.kernel_size, strict=True)
            total = [d * (k - 1) if self.padding == "same" else 0 for d, k in spans]
            sides = [(t // 2, t - t // 2) for t in total]
        else:
            sides = [(p, p) for p in self.padding]
        return [p for side in reversed(sides) for p in side]

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the exact product of `x` with the matrix `weight` plus `bias`."""
        if self.spatial_dims == 0:
            return F.linear(x, weight, bias)
        kernel = self.to_weight(weight)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._pads(), mode=self.padding_mode)
            padding = (0,) * self.spatial_dims
        convolution = _CONV[self.spatial_dims]
        return convolution(x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    def input_mean(self, x: Tensor) -> Tensor:
        """Return the mean of the inputs that each output is computed from, padding counted in.

        It is the product with a matrix whose values are all the same, but added over the channels first:
        ``[..., in]`` gives ``[..., 1]``, and ``[..., channels, *spatial]`` gives ``[..., groups, *output size]``.
        """
        if self.spatial_dims == 0:
            return x.mean(-1, keepdim=True)
        return self.window_mean(x.unflatten(self.channel_dim, (self.groups, -1)).mean(self.channel_dim))

    def window_mean(self, x: Tensor) -> Tensor:
        """Return the mean of each channel over the window that each output is computed from, padding counted in.

        ``[..., n]`` stays, ``[..., n, *spatial]`` gives ``[..., n, *output size]``; n is any number of channels.
        """
        if self.spatial_dims == 0:
            return x
        n, channels = size_product(self.kernel_size), x.shape[self.channel_dim]
        if n == 1:  # no sum; torch is slow at such convolutions
            is_single = x.dim() == 1 + self.spatial_dims
            picked = self._windows(x.unsqueeze(0) if is_single else x).flatten(1 + self.spatial_dims)
            return picked.squeeze(0) if is_single else picked
        return dataclasses.replace(self, groups=channels).apply(x, x.new_full((channels, n), 1.0 / n), None)

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return a matrix ``[m, n]`` times the n channels at each position of `x`, laid out as `x` is."""
        if self.spatial_dims == 0:
            return F.linear(x, matrix)
        return _CONV[self.spatial_dims](x, matrix.reshape(*matrix.shape, *(1,) * self.spatial_dims))

    @property
    def skips_positions(self) -> bool:
        """Whether there are fewer outputs than inputs, as behind a stride."""
        return any(step > 1 for step in self.stride)

    def multiplications(self, x: Tensor, n_positions: int, matrix_size: int) -> int:
        """Return what an exact product with a matrix of so many numbers takes, for all positions of its outputs."""
        return n_positions * matrix_size

    def input_mean_work(self, n_outputs: int, n_inputs: int) -> float:
        """Return the additions of `input_mean` in parts of the multiplications by a matrix ``[n_outputs, n_inputs]``.

        Strides and padding left aside: a group's channels are added up, then what the kernel covers.
        """
        kernel = size_product(self.kernel_size)
        return (n_inputs // kernel + kernel) / (n_outputs // self.groups * n_inputs)

    def unfold(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Lay out the inputs ``[batch, channels, *spatial]`` of every output position as vectors.

        Returns:
            ``[batch, groups, positions, channels / groups * kernel]`` and the output's spatial size.
        """
        windows = self._windows(x)
        size = tuple(windows.shape[2 : 2 + self.spatial_dims])
        return self._vectors(windows), size

    def by_vectors(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a convolution from the product of its vectors, for ``[batch, channels, *spatial]`` or one sample.

        `product` takes them as `unfold` lays them out, and gives ``[batch, positions, out]``.
        """
        batched = x if x.dim() == self.spatial_dims + 2 else x.unsqueeze(0)
        vectors, size = self.unfold(batched)
        out = product(vectors).transpose(1, 2).unflatten(2, size)
        return out if batched is x else out.squeeze(0)

    def unfold_parts(self, x: Tensor, n_values: int) -> Iterator[tuple[int, slice, Tensor]]:
        """Lay out the inputs of a few output positions of one sample after the other, about `n_values` at a time.

        Yields:
            The sample, the positions, and their vectors ``[groups, positions, channels / groups * kernel]``.
        """
        windows = self._windows(x)
        line = windows.shape[3 : 2 + self.spatial_dims].numel()  # positions that share the first coordinate
        values = x.shape[1] * size_product(self.kernel_size) * line
        lines = max(1, n_values // max(values, 1))
        for sample in range(x.shape[0]):
            for first in range(0, windows.shape[2], lines):
                part = windows[sample : sample + 1, :, first : first + lines]
                vectors = self._vectors(part)[0]
                yield sample, slice(first * line, first * line + vectors.shape[1]), vectors

    def output_size(self, x: Tensor) -> tuple[int, ...]:
        """Return the spatial size of the output for `x`."""
        return tuple(self._windows(x).shape[2 : 2 + self.spatial_dims])

    def _windows(self, x: Tensor) -> Tensor:
        """Return a view ``[batch, channels, *output size, *kernel]`` of the padded input."""
        if any(self._pads()):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._pads(), mode=mode)
        return self._view(x, self.stride)

    def _view(self, x: Tensor, strides: tuple[int, ...]) -> Tensor:
        for dim, (kernel, stride, dilation) in enumerate(zip(self.kernel_size, strides, self.dilation, strict=True)):
            x = x.unfold(2 + dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        return x

    def _vectors(self, windows: Tensor) -> Tensor:
        """Copy windows to ``[batch, groups, positions, channels / groups * kernel]``."""
        n = self.spatial_dims
        x = windows.reshape(windows.shape[0], self.groups, -1, *windows.shape[2:])
        x = x.permute([0, 1, *range(3, 3 + n), 2, *range(3 + n, 3 + 2 * n)])
        return x.reshape(*x.shape[:2], x.shape[2 : 2 + n].numel(), x.shape[2 + n :].numel())


@dataclass(frozen=True, kw_only=True)
class TransposedMap(LinearMap):
    """A transposed convolution: the ordinary one, with the kernel turned round, over an input spread by the stride.

    That ordinary convolution's matrix lies on the tiles, so that a row is an output channel as everywhere else.
    """

    output_padding: tuple[int, ...] = ()

    def to_matrix(self, weight: Tensor) -> Tensor:
        """Return ``[out, in / groups * kernel]`` of torch's ``[in, out / groups, *kernel]``."""
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2)
        matrix = grouped.flip(tuple(range(-self.spatial_dims, 0)))
        return matrix.reshape(self.groups * weight.shape[1], -1)

    def to_weight(self, matrix: Tensor) -> Tensor:
        """Return torch's ``[in, out / groups, *kernel]`` of a matrix; undoes `to_matrix`."""
        per_group = matrix.shape[0] // self.groups
        grouped = matrix.reshape(self.groups, per_group, -1, *self.kernel_size).transpose(1, 2)
        weight = grouped.flip(tuple(range(-self.spatial_dims, 0)))
        return weight.reshape(-1, per_group, *self.kernel_size)

    @property
    def skips_positions(self) -> bool:
        """Never: there are more outputs than inputs."""
        return False

    def multiplications(self, x: Tensor, n_positions: int, matrix_size: int) -> int:
        """As for a convolution; every input is spread once, and the zeros between are no work."""
        return x.numel() // max(x.shape[self.channel_dim], 1) * matrix_size

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the exact product of `x` with the matrix `weight` plus `bias`."""
        convolution = _CONV_TRANSPOSE[self.spatial_dims]
        kernel = self.to_weight(weight)
        args = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return convolution(x, kernel, bias, *args)  # type: ignore[arg-type]

    def _windows(self, x: Tensor) -> Tensor:
        """As for a convolution; the zeros between the spread values are among the vectors' inputs."""
        steps = (slice(None), slice(None), *(slice(None, None, step) for step in self.stride))
        size = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], self.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *size)
        spread[steps] = x
        pads: list[int] = []
        for dim in reversed(range(self.spatial_dims)):
            side = self.dilation[dim] * (self.kernel_size[dim] - 1) - int(self.padding[dim])
            pads += [side, side + self.output_padding[dim]]
        return self._view(F.pad(spread, pads), (1,) * self.spatial_dims)


def size_product(size: tuple[int, ...]) -> int:
    """Return the number of positions of a spatial size."""
    return torch.Size(size).numel()
