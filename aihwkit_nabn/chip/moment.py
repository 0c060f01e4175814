"""What moves while a chip runs: the read-noise streams, and noise that varies with the samples processed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from aihwkit_nabn.chip.variation import ChipVariation, samples_processed, variation_of
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
        streams = [getattr(layer, "read_noise", None) for layer in named_analog_layers(model).values()]
        states = [(stream, stream.__getstate__()) for stream in streams if isinstance(stream, RandomStream)]
        return cls(states, variation_of(model), samples_processed(model))

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
