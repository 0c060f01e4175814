"""One network of timm's or transformers': its share of the multiplications on tiles, and how far its outputs differ."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from coverage_models import LARGEST_ERROR, largest_error, randomize
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.comparing import leaves
from aihwkit_nabn.simulator import parse_preset


@dataclass(frozen=True, kw_only=True)
class NetworkCoverage:
    """One row of the tables of timm's and transformers' networks.

    Attributes:
        model: Its name in the list.
        size: Edge of the image.
        layers: Layers on tiles.
        tiles: Their tiles.
        share: Share of the multiplications, in matrix products and convolutions, that tiles do, 0 to 1.
        error: Largest error of the analog model before noise, relative to each output's largest value.
        predicts: Whether a noisy chip gives finite outputs.
        digital: Kinds of the layers with matrices that stay digital.
        problem: What went wrong, or empty.
        seconds: How long it took.
    """

    HEADINGS: ClassVar = (
        "model",
        "image",
        "analog layers",
        "tiles",
        "multiplications on tiles",
        "largest error",
        "noisy chip predicts",
        "layers left digital",
    )

    model: str
    size: int = 0
    layers: int = 0
    tiles: int = 0
    share: float = 0.0
    error: float = math.nan
    predicts: bool = False
    digital: Sequence[str] = ()
    problem: str = ""
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether it computes the same on tiles."""
        return self.error < LARGEST_ERROR and self.predicts and not self.problem

    @property
    def cells(self) -> tuple[str, ...]:
        """What its row says."""
        if self.problem:
            return (self.model, *[""] * 5, "failed", "")
        numbers = (f"{self.size}", f"{self.layers}", f"{self.tiles}", f"{self.share:.1%}", f"{self.error:.1e}")
        return (self.model, *numbers, "yes" if self.predicts else "no", ", ".join(self.digital))


def measure_network(
    name: str, digital: nn.Module, images: Tensor, *, start: float, noise: str, seed: int
) -> NetworkCoverage:
    """Give a network random values, convert and verify it, compare it with the digital one, predict with a chip.

    Args:
        name: Of its row.
        digital: The network.
        images: ``[N, 3, H, W]``.
        start: When it was begun, as `time.perf_counter` says.
        noise: Of the noisy chip.
        seed: Of values and chip.

    Raises:
        NabnError: the network cannot be converted, or the analog one computes something else.
    """
    digital.requires_grad_(False)  # the counter's hooks refuse parameters that are passed on as inputs
    randomize(digital, seed)
    analog: Any = convert_to_noise_aware(digital, parse_preset(noise), example_inputs=images)
    report = analog.conversion_report
    with torch.no_grad():
        pairs = zip(leaves(analog(images)), leaves(digital(images)), strict=True)
        error = max(largest_error(found, expected) for found, expected in pairs)
        share = share_of_multiplications(digital, {entry.name for entry in report.converted}, images)
        program_chip(analog, seed=seed, t_inference=86_400.0)
        predicts = all(bool(output.isfinite().all()) for output in leaves(analog(images)))
    return NetworkCoverage(
        model=name,
        size=images.shape[-1],
        layers=len(report.converted),
        tiles=sum(entry.n_tiles for entry in report.converted),
        share=share,
        error=error,
        predicts=predicts,
        digital=sorted({entry.kind for entry in (*report.kept_digital, *report.refused) if entry.n_weights}),
        seconds=time.perf_counter() - start,
    )


def random_images(size: int, seed: int) -> Tensor:
    """Return two random images ``[2, 3, size, size]``."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def share_of_multiplications(model: nn.Module, layers: set[str], images: torch.Tensor) -> float:
    """Return the share of a model's multiplications that are done in some of its layers.

    Those of matrix products and convolutions are counted, products of two activations (attention) among them.

    Args:
        model: The digital model.
        layers: Names of the layers, as the analog model has them.
        images: What it is run on.
    """
    counter = FlopCounterMode(display=False, depth=None)
    # oneDNN computes a recurrent layer in one call, and the counter sees no product in it.
    with torch.backends.mkldnn.flags(enabled=False), split_attention(model) as split, counter:
        split(images)
    counts = {name.partition(".")[2]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    return sum(counts.get(name, 0) for name in layers) / counter.get_total_flops()
