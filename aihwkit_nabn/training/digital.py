"""Converting a model to train it, and bringing the trained weights back into a digital copy."""

from __future__ import annotations

from typing import Any

import torch
from aihwkit.simulator.parameters.base import RPUConfigBase
from torch import nn

from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.reparametrization import make_weights_plain
from aihwkit_nabn.nn.rewiring import copy_whole
from aihwkit_nabn.results.placement import Exclude, excluded_names


def convert_for_training(
    model: nn.Module, rpu_config: RPUConfigBase, exclude: Exclude = (), **options: Any
) -> nn.Module:
    """Convert a model as `convert_to_noise_aware` does, except for layers whose class computes their weight.

    What their tiles hold has no parameter in the digital model, so it could be neither drawn noise into nor kept.
    """
    given = excluded_names(exclude)
    analog = convert_to_noise_aware(model, rpu_config, given, **options)
    layers = named_analog_layers(analog)
    computed = [name for name, layer in layers.items() if getattr(layer, "weight_is_computed", False)]
    return convert_to_noise_aware(model, rpu_config, (*given, *computed), **options) if computed else analog


def digital_twin(model: nn.Module, analog: nn.Module) -> nn.Module:
    """Return a copy of `model` with the weights and statistics of its analog form, in eval mode.

    `analog` must be in eval mode, so that no weight noise is drawn.
    """
    twin = copy_whole(model)
    layers = named_analog_layers(analog)
    for name in layers:  # the trained weights are what they are, not what other parameters make of them
        make_weights_plain(twin.get_submodule(name))
    own_parameters, own_buffers = dict(twin.named_parameters()), dict(twin.named_buffers())
    with torch.no_grad():
        for name, layer in layers.items():
            assert isinstance(layer, NoiseAwareLayer)
            digital: Any = twin.get_submodule(name)
            digital.weight.copy_(layer.weight.view_as(digital.weight))
            if layer.bias is not None:
                digital.bias.copy_(layer.bias)
        # Everything outside the tiles has kept its name.
        for name, value in (*analog.named_parameters(), *analog.named_buffers()):
            target = own_parameters.get(name, own_buffers.get(name))
            if target is not None:
                target.copy_(value)
    return twin.eval()
