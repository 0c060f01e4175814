"""The streams that a chip's read noise is drawn from, anew in every analog product."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from aihwkit_nabn import native
from aihwkit_nabn.chip.variation import restart_variation
from aihwkit_nabn.drawing import lending
from aihwkit_nabn.errors import ConversionError
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.seeding import RandomStream, check_seed, derive_seed


def set_read_noise_seed(model: nn.Module, seed: int) -> None:
    """Restart the model's read-noise stream: the noise drawn anew in every analog product.

    Noise that varies while the network runs starts again too, always as the chip's own seed has it.

    Our layers draw from a stream of their own each. aihwkit's own torch-tile layers are given one (their draws are
    redirected while they run); its compiled tiles use a C++ generator that cannot be seeded from here.

    Raises:
        ConversionError: the model has no inference tiles.
        NabnError: the seed is no integer >= 0.
    """
    seed = check_seed("seed", seed)
    layers = layers_of(model)
    restart_variation(model)
    restart_read_noise(layers, seed)


def restart_read_noise(layers: dict[str, Any], seed: int) -> None:
    """Let each layer's stream begin anew, from seeds of its own under `seed`."""
    for name, layer in layers.items():
        if not hasattr(layer, "read_noise"):  # aihwkit's own: it stands in for the global generators while they run
            layer.read_noise = RandomStream(0)
            layer.register_forward_pre_hook(_enter_stream)
            layer.register_forward_hook(_leave_stream, always_call=True)
        layer.read_noise.restart(derive_seed(seed, "read", name))


class _Entered(threading.local):
    """The layers whose forward pass this thread is in, and their streams' blocks."""

    def __init__(self) -> None:
        self.blocks: list[tuple[Any, AbstractContextManager[object]]] = []


_entered = _Entered()


def _enter_stream(layer: Any, args: tuple[Any, ...]) -> None:
    if native.is_compiled():
        _lend_stream(layer, args)
        return
    _enter(layer, layer.read_noise.as_global(*(arg for arg in args if isinstance(arg, Tensor))))


@_disable_dynamo
def _lend_stream(layer: Any, args: tuple[Any, ...]) -> None:
    """Let what torch compiles of the layer, where no call can be redirected, draw from its stream."""
    device = next((arg.device for arg in args if isinstance(arg, Tensor)), torch.device("cpu"))
    _enter(layer, lending(layer.read_noise.generator(device)))


def _enter(layer: Any, block: AbstractContextManager[object]) -> None:
    block.__enter__()
    _entered.blocks.append((layer, block))


def _leave_stream(layer: Any, args: tuple[Any, ...], output: Any) -> None:
    if native.is_compiled():
        _left_out(layer, args, output)
    elif _entered.blocks and _entered.blocks[-1][0] is layer:
        _entered.blocks.pop()[1].__exit__(None, None, None)


_left_out = _disable_dynamo(_leave_stream)


def layers_of(model: nn.Module) -> dict[str, Any]:
    """Return the analog layers by name.

    Raises:
        ConversionError: there are none.
    """
    layers = named_analog_layers(model) if isinstance(model, nn.Module) else {}
    if not layers:
        raise ConversionError(
            f"{type(model).__name__} has no layer on inference tiles; convert it with convert_to_noise_aware first"
        )
    return layers
