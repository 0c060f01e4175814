"""Analog transposed convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.nn.layers import NoiseAwareConvolution
from aihwkit_nabn.simulator.product.linear_map import TransposedMap


class _NoiseAwareConvTranspose(NoiseAwareConvolution):
    GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "output_padding")
    MAP = TransposedMap
    linear_map: TransposedMap

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the layer's output for `input`; `output_size` chooses among the sizes that the stride leaves open.

        Args:
            input: ``[batch, channels, *spatial]``, or one sample without the batch.
            output_size: Spatial size of the output, or that with batch and channels in front; None takes the layer's
                output padding.

        Raises:
            NabnError: the size cannot come out of this input.
        """
        linear_map = self.linear_map
        if output_size is not None:
            extra = self._output_padding(input, output_size)
            linear_map = dataclasses.replace(linear_map, output_padding=extra)
        return self._aligned_product(input, linear_map)

    def _output_padding(self, x: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        m, n = self.linear_map, self.linear_map.spatial_dims
        wanted = tuple(int(length) for length in output_size)
        if len(wanted) not in {n, x.dim()}:
            raise NabnError(f"output_size must have {n} or {x.dim()} entries, got {wanted}")
        spans = [d * (k - 1) + 1 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        least = [(length - 1) * m.stride[i] - 2 * int(m.padding[i]) + spans[i] for i, length in enumerate(x.shape[-n:])]
        extra = tuple(got - low for got, low in zip(wanted[-n:], least, strict=True))
        if any(not 0 <= e < s for e, s in zip(extra, m.stride, strict=True)):
            most = [low + s - 1 for low, s in zip(least, m.stride, strict=True)]
            raise NabnError(f"output_size must lie between {least} and {most} for this input, got {wanted[-n:]}")
        return extra


class NoiseAwareConvTranspose1d(_NoiseAwareConvTranspose):
    """Analog `torch.nn.ConvTranspose1d`: ``[batch, channels, length]``."""

    DIGITAL = nn.ConvTranspose1d


class NoiseAwareConvTranspose2d(_NoiseAwareConvTranspose):
    """Analog `torch.nn.ConvTranspose2d`: ``[batch, channels, height, width]``."""

    DIGITAL = nn.ConvTranspose2d


class NoiseAwareConvTranspose3d(_NoiseAwareConvTranspose):
    """Analog `torch.nn.ConvTranspose3d`: ``[batch, channels, depth, height, width]``."""

    DIGITAL = nn.ConvTranspose3d
