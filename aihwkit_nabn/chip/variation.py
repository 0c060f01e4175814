"""Noise that moves while the network runs: the weights on the tiles depend on how many samples the chip has processed.

A chip whose noise model varies (`MovingNoise`) counts the samples that go through it, at the model it was programmed
on, in eval mode only. Before each forward pass the tiles are given the weights that belong to the count; all samples
of a batch meet the same ones. The samples of a pass are the first dimension of its first tensor, or the images of its
first list of single images.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn import native
from aihwkit_nabn.chip.written import note_written, weights_on, write_weights
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.runtime import MovingNoise

_KEPT = "_nabn_variation"


@dataclass
class TileVariation:
    """One tile: the weights that programming and drift gave it, and the patterns its noise is made of at the moment."""

    tile: Any
    base: Tensor
    state: State
    patterns: dict[Hashable, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, tile: Any) -> TileVariation:
        """Take the weights the tile holds now as its base."""
        parameters = tile.drift_noise_parameters
        kept = parameters[0] if parameters else {}
        return cls(tile, weights_on(tile).clone(), {name: tensor.cpu() for name, tensor in kept.items()})

    @property
    def model(self) -> MovingNoise:
        """The tile's noise model, of which each tile has its own."""
        model: MovingNoise = self.tile.rpu_config.noise_model
        return model

    @torch.no_grad()
    def weights_at(self, n_samples: int) -> Tensor:
        """Return the weights ``[out, in]`` after `n_samples` samples, on the tile's device."""
        factors = {key: factor for key, factor in self.model.terms(self.state, n_samples).items() if factor != 0.0}
        like = weights_on(self.tile)
        base = self.base.to(like.device)
        if not factors:
            return base
        known = self.patterns
        self.patterns = {
            key: known[key].to(like.device) if key in known else self.model.pattern(self.state, key).to(like)
            for key in factors
        }
        weights = base.clone()
        for key, factor in factors.items():
            weights.add_(self.patterns[key], alpha=factor)
        return self.model.hold(weights, self.state)

    def was_written(self, n_samples: int) -> bool:
        """Whether the tile holds what it was given after `n_samples` samples, rather than, say, trained weights."""
        expected = self.weights_at(n_samples)
        # Not bit for bit: the model may have moved to another device since.
        off, largest = (weights_on(self.tile) - expected).abs(), expected.abs()
        return expected.numel() == 0 or bool(off.max() <= 1e-6 * largest.max())


@dataclass
class ChipVariation:
    """How far a chip's noise has moved.

    Args:
        tiles: The chip's tiles whose noise varies.
        n_samples: Samples that have gone through the chip.
        n_written: The count whose weights the tiles hold.
    """

    tiles: list[TileVariation]
    n_samples: int = 0
    n_written: int = 0

    def move(self, n_samples: int) -> None:
        """Give every tile the weights that belong to a count."""
        if n_samples != self.n_written:
            for tile in self.tiles:
                write_weights(tile.tile, tile.weights_at(n_samples))
            self.n_written = n_samples


def begin_variation(model: nn.Module, tiles: Iterable[Any], n_samples: int = 0) -> None:
    """Take the weights that a model's tiles hold for those of a chip that nothing has gone through.

    If any of them varies, `model` counts samples from now on, starting at `n_samples`.
    """
    varying = [TileVariation.of(tile) for tile in tiles if _varies(tile.rpu_config.noise_model)]
    model.__dict__.pop(_KEPT, None)
    if varying:
        model.__dict__[_KEPT] = ChipVariation(varying, n_samples)
        if _before_forward not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_before_forward, with_kwargs=True)


def variation_of(model: nn.Module) -> ChipVariation | None:
    """Return how far the noise of the chip on `model` has moved; None where it does not move."""
    kept: ChipVariation | None = model.__dict__.get(_KEPT)
    return kept


def rewind_variation(model: nn.Module) -> int:
    """Give the tiles back the weights of programming and drift, and return the count, which stays.

    Tiles that have been trained meanwhile are left alone.
    """
    kept = variation_of(model)
    if kept is None:
        return 0
    for tile in kept.tiles:
        if kept.n_written and tile.was_written(kept.n_written):
            write_weights(tile.tile, tile.weights_at(0))
            note_written(tile.tile)
    kept.n_written = 0
    return kept.n_samples


def restart_variation(model: nn.Module) -> None:
    """Let the chip's noise begin again as it was when the chip was programmed."""
    rewind_variation(model)
    set_samples_processed(model, 0)


def samples_processed(model: nn.Module) -> int:
    """Return how many samples have gone through a chip whose noise varies; 0 for any other."""
    kept = variation_of(model)
    return 0 if kept is None else kept.n_samples


def set_samples_processed(model: nn.Module, n_samples: int) -> None:
    """Let a chip whose noise varies be as it is after `n_samples` samples; nothing for any other chip.

    For comparing methods that run the chip a different number of times between two points of a stream.
    """
    kept = variation_of(model)
    if kept is not None:
        kept.n_samples = n_samples


def count_samples(inputs: object) -> int:
    """Return the number of samples in what a forward pass is given; at least 1."""
    found = _find(inputs)
    return 1 if found is None else max(found, 1)


def _find(inputs: object) -> int | None:
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.dim() > 1 else 1
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (list, tuple)):
        if inputs and all(isinstance(entry, Tensor) and entry.dim() == 3 for entry in inputs):
            return len(inputs)  # images of different sizes
        return next((found for found in map(_find, inputs) if found is not None), None)
    return None


def _before_forward(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    kept = variation_of(model)
    if kept is None or model.training:
        return
    native.check_runs("noise that moves while the network runs", "take a chip whose noise stands still")
    kept.move(kept.n_samples)
    kept.n_samples += count_samples([*args, *kwargs.values()])


def _varies(noise_model: object) -> bool:
    return isinstance(noise_model, MovingNoise) and noise_model.varies
