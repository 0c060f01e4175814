"""Analog convolution and linear layers whose outputs can be aligned, on aihwkit's tiles."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import torch
from aihwkit.nn.modules.base import AnalogLayerBase
from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.parameters.enums import RPUDataType
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference import InferenceTileWithPeriphery
from aihwkit.simulator.tiles.module import TileModule
from torch import Tensor, nn

from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn.alignment import PARTS, LayerInput, OutputAlignment, adopt_optional_buffers
from aihwkit_nabn.nn.carry_over import carry_over
from aihwkit_nabn.nn.reparametrization import is_trainable
from aihwkit_nabn.seeding import RandomStream
from aihwkit_nabn.simulator.product.dispatch import analog_product
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.replication import array_for
from aihwkit_nabn.simulator.product.scaled_gradient import keep_scaled_gradient
from aihwkit_nabn.simulator.product.tiles import effective_weight, is_perfect, tiles_of

# Largest digital work for the inputs' mean, in parts of the layer's own multiplications.
_MEAN_WORK = 0.25

_DATA_TYPES = {torch.float32: RPUDataType.FLOAT, torch.float64: RPUDataType.DOUBLE}


class NoiseAwareLayer(AnalogLayerBase, nn.Module):  # type: ignore[misc]  # aihwkit comes without types
    """A layer whose weight matrix lies on an array of aihwkit's tiles and whose output passes an `OutputAlignment`.

    The tiles hold the matrix ``[out, in / groups * kernel]``: a grouped convolution is stored packed, each output's
    devices once, and its groups are driven one after the other.

    Args:
        module: The digital layer; its weights are copied.
        rpu_config: aihwkit's configuration of the tiles.
        linear_map: How the matrix meets the input.
        weight: What lies on the tiles where it is not the module's weight itself.
        with_bias: Whether the module's bias is added to the product.

    Attributes:
        analog_module: aihwkit's `TileModuleArray`, one tile or several, with the digital bias.
        alignment: Per-channel correction of the output.
        read_noise: Where the noise of each analog product is drawn from; programming a chip restarts it.
        exact: Whether products are computed exactly with the weights on the tiles, whatever the settings.
        weight_reads: How often `weight` has been read.

    Raises:
        ConversionError: there are no weights, or dtype or tile cannot hold them.
    """

    def __init__(
        self,
        module: Any,
        rpu_config: RPUConfigBase,
        linear_map: LinearMap,
        *,
        weight: Tensor | None = None,
        with_bias: bool = True,
    ) -> None:
        super().__init__()
        weight, bias = module.weight if weight is None else weight, getattr(module, "bias", None)
        bias = bias if with_bias else None
        if not weight.numel():
            raise ConversionError(f"there are no weights to go on a tile: their shape is {tuple(weight.shape)}")
        if weight.dtype not in _DATA_TYPES:
            raise ConversionError(f"weights must be float32 or float64 to go on a tile, got {weight.dtype}")
        if not hasattr(rpu_config, "noise_model"):
            raise ConversionError(f"rpu_config must be an inference configuration, got {type(rpu_config).__name__}")
        config: Any = rpu_config
        if config.tile_array_class.forward is not TileModuleArray.forward:
            name = config.tile_array_class.__name__
            raise ConversionError(
                f"rpu_config.tile_array_class must be TileModuleArray or sum tiles as it does: {name}"
            )
        config.runtime.data_type = _DATA_TYPES[weight.dtype]
        matrix = linear_map.to_matrix(weight.detach()).contiguous()  # results depend on how it lies, in the last bits
        self.linear_map = linear_map
        self.kernel_shape = tuple(weight.shape)
        self.analog_module: TileModuleArray = array_for(config, matrix.shape[0], matrix.shape[1], bias is not None)
        if not is_perfect(self.analog_module):
            self._check_unfolding()
        self.alignment = OutputAlignment(matrix.shape[0], linear_map.channel_dim)
        self._takes_input_mean = linear_map.input_mean_work(*matrix.shape) <= _MEAN_WORK
        self.read_noise = RandomStream(0)
        self.exact = False
        self.weight_reads = 0
        if bias is not None:
            self.analog_module.bias.data = self.analog_module.bias.data.to(weight.dtype)
        self.analog_module.set_weights(matrix, None if bias is None else bias.detach())
        self._freeze_as(module)
        carry_over(module, self)
        self.to(weight.device)
        self.train(module.training)

    def _freeze_as(self, module: Any) -> None:
        """What takes no gradient in the digital layer takes none here."""
        if not is_trainable(module):
            for tile in tiles_of(self.analog_module):
                if isinstance(tile.tile, nn.Module):
                    tile.tile.weight.requires_grad_(False)
        if self.analog_module.bias is not None:
            self.analog_module.bias.requires_grad_(module.bias.requires_grad)

    def _check_unfolding(self) -> None:
        tile = tiles_of(self.analog_module)[0]
        plain_2d = self.linear_map.spatial_dims in (0, 2) and self.linear_map.groups == 1
        if not plain_2d and not isinstance(tile.tile, nn.Module):
            raise ConversionError(
                f"aihwkit's compiled {type(tile).__name__} takes only 2-d convolutions without groups; "
                "use a torch-tile preset"
            )

    @property
    def weight(self) -> Tensor:
        """The weights the tiles hold now, in the digital layer's shape, scales and drift factor included; detached."""
        self.weight_reads += 1
        return self.linear_map.to_weight(effective_weight(self.analog_module).detach())

    def matrix_shape_of(self, weight: Tensor) -> tuple[int, ...]:
        """Return the shape of the matrix that a digital layer's `weight` would make on these tiles."""
        return tuple(self.linear_map.to_matrix(weight.detach()).shape)

    def named_analog_tiles(self) -> Generator[tuple[str, TileModule], None, None]:
        """Yield this layer's own tiles by name, not those of analog layers inside it."""
        for name, module in self.analog_module.named_modules(prefix="analog_module"):
            if isinstance(module, TileModule):
                yield name, module

    @property
    def bias(self) -> Tensor | None:
        """The digital bias ``[out]``."""
        bias: Tensor | None = self.analog_module.bias
        return bias

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for `input`, in the layout of torch's own layer."""
        return self._aligned_product(input, self.linear_map)

    def _aligned_product(self, x: Tensor, linear_map: LinearMap) -> Tensor:
        """Return the analog product of `x`, in whichever geometry, aligned."""
        product = analog_product(x, self.analog_module, linear_map, self.read_noise, exact=self.exact)
        out: Tensor = self.alignment(product, LayerInput(x, linear_map, self._takes_input_mean), overwrite=True)
        return out

    def __getstate__(self) -> dict[str, Any]:
        for tile in tiles_of(self.analog_module):
            keep_scaled_gradient(tile)
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The shape of a tile's drift factor depends on whether, and how, its drift has been compensated.
        for name, tile in self.named_analog_tiles():
            if f"{prefix}{name}.alpha" in state_dict:
                adopt_optional_buffers(tile, ("alpha",), state_dict, f"{prefix}{name}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Shape and tiles."""
        tiles = tiles_of(self.analog_module)
        kind = type(tiles[0].rpu_config).__name__
        return f"{tuple(self.kernel_shape)}, tiles={len(tiles)}, bias={self.bias is not None}, {kind}"

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of what this layer computes now: drift factor, bias and alignment folded in."""
        matrix, bias = effective_weight(self.analog_module).detach(), self.analog_module.bias
        in_force = (getattr(self.alignment, part) if self.alignment.enabled else None for part in PARTS)
        scale, offset, gain, directions, mixing = in_force
        if scale is not None:
            matrix = matrix * scale.view(-1, 1).to(matrix)
            bias = offset if bias is None else bias * scale + offset
        if gain is not None:
            matrix = matrix + gain.view(-1, 1).to(matrix) / matrix.shape[1]
        if directions is not None:
            product = (mixing @ directions).to(matrix)
            n = matrix.shape[1] // product.shape[1]  # the kernel's positions, over which a window mean is taken
            matrix = matrix + product.repeat_interleave(n, 1) / n
        return self.linear_map.to_weight(matrix).clone(), None if bias is None else bias.detach().clone()

    def _digital(self, empty: Any) -> nn.Module:
        """Fill a digital layer with what this one computes now."""
        weight, bias = self._folded()
        empty.weight = nn.Parameter(weight)
        empty.bias = None if bias is None else nn.Parameter(bias)
        digital: nn.Module = empty.train(self.training)
        return digital


class NoiseAwareConvolution(NoiseAwareLayer):
    """What all convolutions have in common.

    Attributes:
        DIGITAL: Torch's class.
        GEOMETRY: Its options that say how the kernel meets the input.
        MAP: What these make up.
    """

    DIGITAL: Callable[..., nn.Module]
    GEOMETRY: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    MAP: type[LinearMap] = LinearMap

    @classmethod
    def from_digital(
        cls, module: Any, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareConvolution:
        """Return the analog form of torch's convolution (any stride, padding, dilation, groups), weights copied.

        `rpu_config` is taken over as it is. `tile_module_class` is part of aihwkit's signature and not used: the layer
        always holds a tile array.
        """
        geometry: dict[str, Any] = {name: getattr(module, name) for name in cls.GEOMETRY}
        geometry = {name: tuple(value) if isinstance(value, list) else value for name, value in geometry.items()}
        return cls(module, rpu_config, cls.MAP(spatial_dims=len(module.kernel_size), **geometry))

    @classmethod
    def to_digital(cls, module: NoiseAwareConvolution, realistic: bool = False) -> nn.Module:
        """Return torch's convolution with the weights the tiles hold now, drift factor and alignment folded in."""
        m: Any = module
        geometry = {name: getattr(m, name) for name in cls.GEOMETRY}
        return module._digital(cls.DIGITAL(m.in_channels, m.out_channels, bias=False, **geometry))


class NoiseAwareConv1d(NoiseAwareConvolution):
    """Analog `torch.nn.Conv1d`: ``[batch, channels, length]``."""

    DIGITAL = nn.Conv1d


class NoiseAwareConv2d(NoiseAwareConvolution):
    """Analog `torch.nn.Conv2d`: ``[batch, channels, height, width]``."""

    DIGITAL = nn.Conv2d


class NoiseAwareConv3d(NoiseAwareConvolution):
    """Analog `torch.nn.Conv3d`: ``[batch, channels, depth, height, width]``."""

    DIGITAL = nn.Conv3d


class NoiseAwareLinear(NoiseAwareLayer):
    """Analog `torch.nn.Linear`: ``[..., in_features]`` to ``[..., out_features]``."""

    @classmethod
    def from_digital(
        cls, module: nn.Module, rpu_config: RPUConfigBase, tile_module_class: object = None
    ) -> NoiseAwareLinear:
        """Return the analog form of torch's linear layer, weights copied; arguments as for the convolutions."""
        return cls(module, rpu_config, LinearMap())

    @classmethod
    def to_digital(cls, module: NoiseAwareLinear, realistic: bool = False) -> nn.Module:
        """Return torch's linear layer with the weights the tiles hold now, drift factor and alignment folded in."""
        m: Any = module
        return module._digital(nn.Linear(m.in_features, m.out_features, bias=False))


def is_analog_layer(module: Any) -> bool:
    """Whether it is a layer on tiles of any kind, ours or aihwkit's."""
    return isinstance(module, AnalogLayerBase) and not module.IS_CONTAINER


def own_tiles(layer: Any) -> list[Any]:
    """Return the tiles that an analog layer's matrix lies on, without those of layers inside it."""
    return list(layer.analog_tiles())


def named_analog_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` that lie on inference tiles, ours and aihwkit's own, by name; shared ones once."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if is_analog_layer(module) and any(isinstance(tile, InferenceTileWithPeriphery) for tile in own_tiles(module)):
            layers[name] = module
    return layers
