"""What moves while a chip runs: the read-noise streams, and noise that varies with the samples gone through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from aihwkit_nabn.chip.variation import ChipVariation, variation_of
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.seeding import RandomStream


@dataclass(frozen=True)
class ChipMoment:
    """Where a chip's streams and counters stand, to go back to.

    Args:
        streams: The layers' streams, each with its state.
        variation: The chip's moving noise, or None.
        n_samples: Samples that had gone through the chip.
    """

    streams: list[tuple[RandomStream, dict[str, Any]]]
    variation: ChipVariation | None
    n_samples: int

    @classmethod
    def take(cls, model: nn.Module) -> ChipMoment:
        """Note where the chip on `model` stands."""
        streams = []
        for layer in named_analog_layers(model).values():
            stream = getattr(layer, "read_noise", None) or getattr(
                getattr(layer, "_nabn_read_noise", None), "stream", None
            )
            if isinstance(stream, RandomStream):
                streams.append((stream, stream.__getstate__()))
        variation = variation_of(model)
        return cls(streams, variation, 0 if variation is None else variation.n_samples)

    def restore(self) -> None:
        """Bring the chip back there."""
        for stream, state in self.streams:
            stream.__setstate__(state)
        if self.variation is not None:
            self.variation.n_samples = self.n_samples

    def leave(self) -> int | None:
        """Return which weights of a moving noise the chip holds, for `enter` to give them back."""
        return None if self.variation is None else self.variation.n_written

    def enter(self, place: int | None) -> None:
        """Give the chip the weights of an earlier `leave`."""
        if self.variation is not None and place is not None:
            self.variation.move(place)
