"""What hardware-aware training gave, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """The price and the settings of one training, as plain values.

    Attributes:
        noise: The weight noise in words.
        std: Its standard deviation, as `TrainingNoise` has it.
        images: Training images, each with its label; `images_seen`: in all epochs together.
        steps: Steps of the optimizer.
        losses: Mean training loss of each epoch.
        settings: Optimizer, learning rate, clipping, seed.
        on_tiles: What was trained on tiles and what stayed digital, in words.
    """

    noise: str
    std: float
    epochs: int
    images: int
    images_seen: int
    steps: int
    seconds: float
    losses: tuple[float, ...]
    settings: dict[str, Any]
    on_tiles: str

    @property
    def labels(self) -> int:
        """Labels that were needed: one per training image."""
        return self.images

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {**asdict(self), "losses": list(self.losses), "labels": self.labels}

    def __str__(self) -> str:
        loss = f", loss {self.losses[0]:.3f} to {self.losses[-1]:.3f}" if self.losses else ""
        return (
            f"trained at {self.noise}: {self.epochs} epochs of {self.images} labelled images, "
            f"{self.seconds:.0f} s{loss}\n{self.on_tiles}"
        )


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A network after hardware-aware training.

    Attributes:
        model: A digital copy of the network that was given, in eval mode, with the trained weights and statistics.
        report: What it cost.
    """

    model: nn.Module
    report: TrainingReport
