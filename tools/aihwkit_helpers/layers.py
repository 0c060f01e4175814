"""Kinds of analog layers, each with the sizes the tests take for granted; `NAMECuda` is the same on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

from aihwkit import nn as analog
from torch import nn

UNTILED = (0, 0)


class _Layer:
    use_cuda = False


def _kind(
    make: Callable[..., Any],
    sizes: tuple[str, str],
    defaults: tuple[int, int],
    tile: tuple[int, int] = UNTILED,
    **options: Any,
) -> type:
    """Return a kind of layer: `sizes` names its first two arguments, `tile` is the largest input and output."""

    def get_layer(self: Any, *args: Any, rpu_config: Any = None, **kwargs: Any) -> Any:
        config = rpu_config or self.get_rpu_config()
        if self.bias and not self.digital_bias and (tile != UNTILED or hasattr(config, "simulator_tile_class")):
            raise SkipTest("these tiles hold no analog bias")
        config.mapping.max_input_size, config.mapping.max_output_size = tile
        config.mapping.digital_bias = self.digital_bias
        given = dict(zip(sizes, args, strict=False))
        arguments = {**dict(zip(sizes, defaults, strict=True)), "bias": self.bias, **options, **given, **kwargs}
        layer = make(arguments.pop(sizes[0]), arguments.pop(sizes[1]), rpu_config=config, **arguments)
        return layer.cuda() if self.use_cuda else layer

    return type("Layer", (_Layer,), {"get_layer": get_layer})


def _recurrent(cell: type, native: type) -> type:
    def make(input_size: int, hidden_size: int, **kwargs: Any) -> Any:
        return analog.AnalogRNN(cell, input_size, hidden_size, **kwargs)

    def get_native_layer_comparison(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer = native(*args, **kwargs)
        return layer.cuda() if self.use_cuda else layer

    kind = _kind(make, ("input_size", "hidden_size"), (2, 3))
    return type("Layer", (kind,), {"get_native_layer_comparison": get_native_layer_comparison})


_FEATURES, _CHANNELS = ("in_features", "out_features"), ("in_channels", "out_channels")

KINDS = {
    "Linear": _kind(analog.AnalogLinear, _FEATURES, (3, 4)),
    "LinearMapped": _kind(analog.AnalogLinearMapped, _FEATURES, (10, 6), (4, 3)),
    "Conv1d": _kind(analog.AnalogConv1d, _CHANNELS, (2, 3), kernel_size=[4], padding=2),
    "Conv2d": _kind(analog.AnalogConv2d, _CHANNELS, (2, 3), kernel_size=[3, 3], padding=2),
    "Conv3d": _kind(analog.AnalogConv3d, _CHANNELS, (2, 3), kernel_size=[2, 2, 2], padding=2),
    "Conv1dMapped": _kind(analog.AnalogConv1dMapped, _CHANNELS, (2, 3), (4, 3), kernel_size=[4], padding=2),
    "Conv2dMapped": _kind(analog.AnalogConv2dMapped, _CHANNELS, (2, 3), (21, 3), kernel_size=[3, 3], padding=2),
    "Conv3dMapped": _kind(analog.AnalogConv3dMapped, _CHANNELS, (2, 3), (21, 3), kernel_size=[2, 2, 2], padding=2),
    "LSTM": _recurrent(analog.AnalogLSTMCell, nn.LSTM),
    "LSTMCombinedWeight": _recurrent(analog.AnalogLSTMCellCombinedWeight, nn.LSTM),
    "GRU": _recurrent(analog.AnalogGRUCell, nn.GRU),
    "VanillaRNN": _recurrent(analog.AnalogVanillaRNNCell, nn.RNN),
}

for _name, _plain in KINDS.items():
    globals()[_name] = type(_name, (_plain,), {})
    globals()[f"{_name}Cuda"] = type(f"{_name}Cuda", (_plain,), {"use_cuda": True})
