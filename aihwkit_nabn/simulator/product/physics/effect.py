"""A readout effect: what happens to a tile's results in front of its ADC, whichever way they were computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aihwkit.simulator.parameters.io import IOParameters
from torch import Tensor

#: Values of an effect in the layout of the results, for them and its flows.
Flows = tuple[Tensor, ...]


class Currents(ABC):
    """What flows through the devices behind results: sums over a tile row's inputs x and weights w."""

    @property
    @abstractmethod
    def depth(self) -> Tensor:
        """``[rows]``, how far along the wires each row of the tile lies, from 0 to below 1."""

    @abstractmethod
    def squares(self, strength: float, weighted: bool) -> Tensor:
        """Return the sum of ``(strength * x)**2`` over the devices, each times ``|w|`` or not, in squared units."""

    @abstractmethod
    def total(self, g_ratio: float) -> Tensor:
        """Return the total current as aihwkit counts it: the sum of ``|w x|`` times the rows over `g_ratio`."""

    @abstractmethod
    def by_row(self, factors: Tensor) -> Tensor:
        """Return the product with each row's part multiplied by its factor, ``[rows]``, in units of the results."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What an effect may use while results are read out; values per output broadcast along the results.

    Args:
        unit: What 1 stands for in the results, in units of one input at full scale times the largest weight.
        noise: Standard deviation of the output noise in that unit.
        outputs: What `ReadoutEffect.draw_outputs` gave, by the effect's name.
        normal: Gives normal numbers, one for each result; the next call may overwrite them.
        add: ``add(y, a, b, scale=1.0)`` returns ``y + scale * a * b`` in the way of this readout: y's memory may be
            used for it. Results that other operations return lose nothing but time.
    """

    unit: Tensor | float
    noise: Tensor | float
    outputs: Mapping[str, Tensor]
    normal: Callable[[Tensor], Tensor]
    add: Callable[..., Tensor]


class ReadoutEffect(ABC):
    """Something that happens to results in front of the ADC.

    Derive a frozen dataclass, its fields the settings, and register it (`register_readout_effect`). All products, the
    drift read-out and gradients then go through `apply`; without a `compiled` form in torch instead of in C.

    Attributes:
        name: What it is registered as.
    """

    name: ClassVar[str] = ""

    def flows(self, currents: Currents) -> Flows:
        """Return what `apply` needs of the currents, computed once per product, each in the results' shape."""
        return ()

    def draw_outputs(self, n: int) -> Tensor | None:
        """Return ``[n]`` values that differ from output to output of a tile, drawn anew with each chip, or None.

        Random numbers come from torch's global generator, which then stands at a seed of the chip's and the tile's.
        """
        return None

    @abstractmethod
    def apply(self, y: Tensor, flows: Flows, at: Reading) -> Tensor:
        """Return the results after the effect; torch must be able to differentiate what is computed from y."""

    def compiled(self, flows: Flows) -> dict[str, Any] | None:
        """Return the fields of `native.Readout` that stand for the effect; None: the C code has none."""
        return None


def disturbed(y: Tensor, effects: Sequence[ReadoutEffect], flows: Sequence[Flows], at: Reading) -> Tensor:
    """Return the results as they reach the ADC."""
    for effect, own in zip(effects, flows, strict=True):
        y = effect.apply(y, own, at)
    return y


def add_in_place(y: Tensor, a: Tensor, b: Tensor | float, scale: float = 1.0) -> Tensor:
    """Add ``scale * a * b`` to y in one operation."""
    return y.addcmul_(a, b, value=scale) if isinstance(b, Tensor) else y.add_(a, alpha=b * scale)


@dataclass
class EffectParameters(IOParameters):
    """aihwkit's parameters of a product, and effects that it does not know.

    Attributes:
        effects: They act in this order, after IR drop, asymmetry and noise.
    """

    effects: tuple[ReadoutEffect, ...] = ()
