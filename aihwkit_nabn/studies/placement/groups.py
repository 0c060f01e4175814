"""Which layers can only be kept digital together, and what each costs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from aihwkit_nabn.nn.alignment import LayerInput
from aihwkit_nabn.nn.calibration_state import alignments
from aihwkit_nabn.nn.layers import named_analog_layers


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that are digital together.

    Attributes:
        exclude: The digital network's modules that hold them.
        layers: Names of the layers on tiles.
    """

    exclude: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names of the modules, as text."""
        return ",".join(self.exclude)


def layer_groups(model: nn.Module, analog: nn.Module) -> list[Group]:
    """Return the layers that `model` can keep digital, in the order of the modules.

    Layers go together where they share weights, and where they lie in one module that only stays digital as a whole,
    such as an attention's projections. What cannot be named, a model that is a layer itself, is left out.

    Args:
        model: The digital network.
        analog: Its conversion.
    """
    modules = dict(model.named_modules())
    owners: dict[str, list[str]] = {}
    for name in named_analog_layers(analog):
        owner = name
        while owner not in modules:
            owner = owner.rpartition(".")[0]
        if owner:
            owners.setdefault(owner, []).append(name)
    parts = {owner: {owner} for owner in owners}

    def join(one: str, other: str) -> None:
        if parts[one] is not parts[other]:
            parts[one] |= parts[other]
            for owner in parts[one]:
                parts[owner] = parts[one]

    first_use: dict[int, str] = {}
    for owner in owners:
        for parameter in modules[owner].parameters():
            if parameter.dim() > 1:
                join(first_use.setdefault(id(parameter), owner), owner)
        for other in owners:
            if other.startswith(f"{owner}."):
                join(owner, other)
    groups = {id(part): part for part in parts.values()}.values()
    return [
        Group(
            exclude=tuple(owner for owner in owners if owner in part),
            layers=tuple(layer for owner in owners if owner in part for layer in owners[owner]),
        )
        for part in groups
    ]


def count_multiplications(analog: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Return each layer's multiplications while `run` runs the network, in the order of the layers' first calls.

    Layers that are not called have 0 and come last. What `run` returns is of no use: alignments are left out.
    """
    counts: dict[str, float] = {}
    layers: Mapping[str, Any] = named_analog_layers(analog)

    def count(name: str, output: Tensor, given: LayerInput | None) -> Tensor:
        module = layers[name].analog_module
        positions = output.numel() // max(module.out_size, 1)
        size = module.out_size * module.in_size
        own = positions * size if given is None else given.linear_map.multiplications(given.inputs, positions, size)
        counts[name] = counts.get(name, 0.0) + own
        return output

    found = alignments(analog)
    for name, alignment in found.items():
        alignment.observer = functools.partial(count, name)
    try:
        run()
    finally:
        for alignment in found.values():
            alignment.observer = None
    return {**counts, **{name: 0.0 for name in layers if name not in counts}}
