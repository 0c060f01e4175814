"""mmcv's deformable convolutions on tiles: the tiles hold the kernel, the sampling of the input is digital.

Importing this lets `convert_to_noise_aware` convert them.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from aihwkit.simulator.parameters.base import RPUConfigBase
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    MaskedConv2d,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn import NoiseAwareConv2d, NoiseAwareLayer, register_analog_form
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.tile_forward import unfolded_product
from aihwkit_nabn.simulator.product.tiles import effective_weight, is_perfect


def deformed_vectors(
    x: Tensor, offset: Tensor, mask: Tensor | None, linear_map: LinearMap, deform_groups: int
) -> tuple[Tensor, tuple[int, int]]:
    """Sample the input of every output position of a deformable convolution.

    Args:
        x: ``[batch, channels, height, width]``.
        offset: ``[batch, deform_groups * kernel * 2, out_height, out_width]``, each y before its x, in pixels.
        mask: ``[batch, deform_groups * kernel, out_height, out_width]``, what each sample is multiplied with, or None.
        linear_map: Geometry of the convolution.
        deform_groups: The channels fall into this many groups with offsets of their own.

    Returns:
        ``[batch, groups, positions, channels / groups * kernel]`` and the output's height and width. What lies outside
        the input is zero.
    """
    batch, channels, height, width = x.shape
    out_h, out_w = offset.shape[-2:]
    kernel = math.prod(linear_map.kernel_size)
    moved = offset.reshape(batch * deform_groups, kernel, 2, out_h, out_w)
    y = moved[:, :, 0] + _grid(linear_map, 0, out_h, x).view(1, kernel, out_h, 1)
    z = moved[:, :, 1] + _grid(linear_map, 1, out_w, x).view(1, kernel, 1, out_w)
    places = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    samples = F.grid_sample(
        x.reshape(batch * deform_groups, -1, height, width),
        places.reshape(batch * deform_groups, kernel * out_h, out_w, 2),
        align_corners=False,
    )
    samples = samples.reshape(batch, deform_groups, -1, kernel, out_h * out_w)
    if mask is not None:
        samples = samples * mask.reshape(batch, deform_groups, 1, kernel, out_h * out_w)
    vectors = samples.reshape(batch, linear_map.groups, -1, out_h * out_w).transpose(2, 3)
    return vectors, (out_h, out_w)


def _grid(linear_map: LinearMap, dim: int, n: int, like: Tensor) -> Tensor:
    """Where the undeformed kernel's elements lie along one dimension, ``[kernel, n]``, all elements listed."""
    steps = torch.arange(n, dtype=like.dtype, device=like.device) * linear_map.stride[dim]
    size = linear_map.kernel_size
    taps = torch.arange(size[dim], dtype=like.dtype, device=like.device) * linear_map.dilation[dim]
    taps = taps.repeat_interleave(size[1]) if dim == 0 else taps.repeat(size[0])
    return taps.view(-1, 1) + steps - int(linear_map.padding[dim])


class NoiseAwareDeformConv2d(NoiseAwareLayer):
    """Analog `mmcv.ops.DeformConv2d`.

    Where the tiles multiply exactly, mmcv's own operator computes the product with the weights on the chip; otherwise
    the input is sampled and the samples go through the tiles.
    """

    DIGITAL: type[nn.Module] = DeformConv2d
    conv_offset: nn.Module

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareDeformConv2d:
        """Return the analog form of mmcv's layer, of any geometry, weights copied.

        `tile_module_class` is part of aihwkit's signature, and not used: the layer always holds a tile array.
        """
        geometry: dict[str, Any] = {
            name: _pair(getattr(module, name)) for name in ("kernel_size", "stride", "padding", "dilation")
        }
        layer = cls(module, rpu_config, LinearMap(spatial_dims=2, groups=module.groups, **geometry))
        offsets = getattr(module, "conv_offset", None)
        if offsets is not None:
            layer.conv_offset = NoiseAwareConv2d.from_digital(offsets, copy.deepcopy(rpu_config))
        return layer

    @classmethod
    def to_digital(cls, module: NoiseAwareDeformConv2d, realistic: bool = False) -> nn.Module:
        """Return mmcv's layer with the weights the tiles hold now, drift factor and alignment folded in.

        Raises:
            ConversionError: a bias is needed and mmcv's class has none.
        """
        m: Any = module
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "deform_groups")
        empty: Any = cls.DIGITAL(m.in_channels, m.out_channels, **{name: getattr(m, name) for name in names})
        digital: Any = module._digital(empty)
        if digital.bias is not None and not issubclass(cls.DIGITAL, ModulatedDeformConv2d):
            raise ConversionError(f"{cls.DIGITAL.__name__} of mmcv has no bias, which the alignment's offset needs")
        if hasattr(module, "conv_offset"):
            offsets = m.conv_offset
            analog = isinstance(offsets, NoiseAwareConv2d)
            digital.conv_offset = NoiseAwareConv2d.to_digital(offsets) if analog else offsets
        mmcv_layer: nn.Module = digital
        return mmcv_layer

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``[batch, out, out_height, out_width]``; `offset` as in `deformed_vectors`."""
        return self._deformed(x, offset, None)

    def _deformed(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        m: Any = self
        array = self.analog_module
        if x.numel() == 0:
            product = x.new_zeros(x.shape[0], array.out_size, *offset.shape[-2:])
        elif (self.exact or is_perfect(array)) and min(
            a - b for a, b in zip(x.shape[2:], m.kernel_size, strict=True)
        ) >= 0:
            product = self._exact(x, offset, mask)
        else:  # mmcv's operators also fail on inputs smaller than the kernel
            with self.read_noise.as_global(x):
                vectors, size = deformed_vectors(x, offset, mask, self.linear_map, m.deform_groups)
                product = unfolded_product(vectors, array).transpose(1, 2).reshape(x.shape[0], -1, *size)
        out: Tensor = self.alignment(product, overwrite=True)
        return out

    def _exact(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        m, g = self.linear_map, self.linear_map.groups
        array, deform_groups = self.analog_module, cast(int, self.deform_groups)
        weight = m.to_weight(effective_weight(array))
        product: Tensor
        if mask is not None:
            product = modulated_deform_conv2d(
                x, offset, mask, weight, array.bias, m.stride, m.padding, m.dilation, g, deform_groups
            )
            return product
        step = math.gcd(x.shape[0], 32)  # the operator takes samples in steps that must divide the batch
        product = deform_conv2d(x, offset, weight, m.stride, m.padding, m.dilation, g, deform_groups, False, step)
        return product if array.bias is None else product + array.bias.view(-1, 1, 1)


class NoiseAwareDeformConv2dPack(NoiseAwareDeformConv2d):
    """Analog `mmcv.ops.DeformConv2dPack`: the convolution that finds the offsets lies on tiles too."""

    DIGITAL = DeformConv2dPack
    ANALOG_CHILDREN = ("conv_offset",)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``[batch, out, out_height, out_width]`` of ``[batch, channels, height, width]``."""
        return self._deformed(x, self.conv_offset(x), None)


class NoiseAwareModulatedDeformConv2d(NoiseAwareDeformConv2d):
    """Analog `mmcv.ops.ModulatedDeformConv2d`."""

    DIGITAL = ModulatedDeformConv2d

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``[batch, out, out_height, out_width]``; arguments as in `deformed_vectors`."""
        return self._deformed(x, offset, mask)


class NoiseAwareModulatedDeformConv2dPack(NoiseAwareDeformConv2d):
    """Analog `mmcv.ops.ModulatedDeformConv2dPack`: offsets and masks come from a convolution on tiles too."""

    DIGITAL = ModulatedDeformConv2dPack
    ANALOG_CHILDREN = ("conv_offset",)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``[batch, out, out_height, out_width]`` of ``[batch, channels, height, width]``."""
        y, z, mask = self.conv_offset(x).chunk(3, 1)
        return self._deformed(x, torch.cat((y, z), 1), mask.sigmoid())


class NoiseAwareMaskedConv2d(NoiseAwareConv2d):
    """Analog `mmcv.ops.MaskedConv2d` of guided anchoring: zero where the mask is."""

    @classmethod
    def to_digital(cls, module: Any, realistic: bool = False) -> nn.Module:
        """Return mmcv's layer with the weights the tiles hold now, drift factor and alignment folded in."""
        m = module
        geometry = (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
        digital: nn.Module = m._digital(MaskedConv2d(*geometry, bias=False))
        return digital

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[1, out, height, width]``; computed where `mask`, ``[1, height, width]``, is positive."""
        out = super().forward(input)
        return out if mask is None else out.masked_fill(mask[:, None] <= 0, 0.0)


register_analog_form(MaskedConv2d, NoiseAwareMaskedConv2d)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


for _form in (
    NoiseAwareDeformConv2d,
    NoiseAwareDeformConv2dPack,
    NoiseAwareModulatedDeformConv2d,
    NoiseAwareModulatedDeformConv2dPack,
):
    register_analog_form(_form.DIGITAL, _form)
