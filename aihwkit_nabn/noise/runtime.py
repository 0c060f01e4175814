"""What noise models offer that act beyond programming and drift: chip-wide draws, faults that hold, noise that moves.

All three are optional. `WeightNoiseModel.varies` and `HoldingNoise` say which a model has.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.noise.base import State, WeightNoiseModel
from aihwkit_nabn.seeding import derive_seed


def chip_normal(model: WeightNoiseModel, key: str, generator: torch.Generator) -> float:
    """Return a standard normal number that is the same on all tiles of the chip, e.g. its temperature.

    Args:
        model: Whose `chip_seed` says which chip.
        key: What the number is for.
        generator: Drawn from where the tile stands alone.
    """
    if model.chip_seed is not None:
        generator = torch.Generator().manual_seed(derive_seed(model.chip_seed, type(model).__name__, key))
    return float(torch.randn((), generator=generator, dtype=torch.float64))


class HoldingNoise(WeightNoiseModel):
    """Base of faults that stay whatever happens to the devices later.

    In a composition they act after everything else, at programming, after each drift and at each step of a noise that
    moves.
    """

    cycle_to_cycle: ClassVar[bool] = False

    def stick(self, weights: Tensor, full_scale: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights with the faults in place, and the state that says where those are.

        Args:
            weights: ``[out, in]`` weights as they would be without faults.
            full_scale: The |weight| that stands for the largest conductance, a scalar.
            generator: Source of all randomness.
        """
        raise NotImplementedError

    def impose(self, weights: Tensor, state: State) -> Tensor:
        """Return fault-free `weights` with the same faults again in place."""
        raise NotImplementedError

    def hold(self, weights: Tensor, state: State) -> Tensor:
        """Return weights that held the faults and were moved since, the faulty devices back where they are stuck.

        Holding twice is holding once.
        """
        raise NotImplementedError

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights with the faults in place."""
        full_scale = weights.abs().amax() if weights.numel() else weights.new_zeros(())
        return self.stick(weights, full_scale, generator)


class MovingNoise(WeightNoiseModel):
    """Base of noise that moves while the chip works.

    After `n` samples the weights are ``W(n) = W + sum_k terms(n)[k] * pattern(k)``, W being the weights after
    programming and drift. Both depend on the state and on n only, not on what ran before, so that every n can be asked
    for at once and a chip can start anew.
    """

    def terms(self, state: State, n_samples: int) -> dict[Hashable, float]:
        """Return the factor of each pattern when the chip has processed `n_samples` samples; those missing are 0."""
        raise NotImplementedError

    def pattern(self, state: State, key: Hashable) -> Tensor:
        """Return one pattern, in the shape, units and dtype of the weights, on the CPU."""
        raise NotImplementedError

    def hold(self, weights: Tensor, state: State) -> Tensor:
        """Return moved weights, `weights`, with whatever does not move put back; nothing here."""
        return weights
