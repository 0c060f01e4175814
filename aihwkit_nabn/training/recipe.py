"""How a network is trained for chips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """See `train_hardware_aware`.

    Attributes:
        epochs: Passes over the training set.
        learning_rate: At the start; None: a tenth of what the config trains with.
        clip_sigma: Weights are clipped at this many standard deviations of their layer.
        seed: Of everything drawn.
    """

    epochs: int
    learning_rate: float | None
    clip_sigma: float
    seed: int
