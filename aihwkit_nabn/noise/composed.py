"""Several noise models on one chip, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise.base import State, WeightNoiseModel, part_of
from aihwkit_nabn.noise.registration import build_noise_model
from aihwkit_nabn.noise.runtime import HoldingNoise, MovingNoise
from aihwkit_nabn.seeding import derive_seed

_HEALTHY = "healthy"


class ComposedNoise(MovingNoise):
    """Effects in the order given, each acting on what the ones before it left.

    At programming the first effect gets the target weights, the next what the first made of them, and so on; likewise
    at each drift. Faults that hold (`HoldingNoise`) come last wherever they stand in the list: devices drift and vary
    as if there were no faults, and then the stuck ones are where they are stuck, at every time the same.

    `drifts`, `changes_with_time`, `columnwise_mapping` and `varies` are true if they are of one effect; the range of
    times is what all of them allow. `w_max` is that of the target weights for every effect.

    Args:
        effects: Noise models of this package; names (``"pcm"``); or mappings such as
            ``dict(type="stuck", p_off=0.01)``. Compositions are taken apart.

    Raises:
        UnknownNameError: there is no noise model of a name.
        NabnError: there are no effects, one of them is something else, or no time is allowed by all.

    Example:
        >>> ComposedNoise(["pcm", dict(type="stuck", p_off=0.02)]).drifts
        True
    """

    cycle_to_cycle: ClassVar[bool] = False  # each effect says for itself

    def __init__(self, effects: Sequence[WeightNoiseModel | str | Mapping[str, Any]] = ()) -> None:
        super().__init__()
        if isinstance(effects, (str, Mapping)) or not isinstance(effects, Sequence) or not effects:
            raise NabnError(f"effects must be a list of at least one noise model, got {effects!r}")
        self.effects = tuple(one for effect in effects for one in _as_models(effect))
        low, high = self.t_range_s
        if low > high:
            raise NabnError(
                f"effects must share a range of times, but one begins at {low:g} s and one ends at {high:g} s"
            )

    @property
    def t_range_s(self) -> tuple[float, float]:  # type: ignore[override]
        """The times all effects allow."""
        ranges = [effect.t_range_s for effect in self.effects]
        return max(low for low, _ in ranges), min(high for _, high in ranges)

    @property
    def drifts(self) -> bool:  # type: ignore[override]
        """Whether any effect does."""
        return any(effect.drifts for effect in self.effects)

    @property
    def changes_with_time(self) -> bool:
        """Whether any effect does."""
        return any(effect.changes_with_time for effect in self.effects)

    @property
    def columnwise_mapping(self) -> bool:  # type: ignore[override]
        """Whether any effect is given in conductance."""
        return any(effect.columnwise_mapping for effect in self.effects)

    @property
    def reads_file(self) -> bool:  # type: ignore[override]
        """Whether any effect may."""
        return any(effect.reads_file for effect in self.effects)

    @property
    def varies(self) -> bool:  # type: ignore[override]
        """Whether any effect moves while the chip works."""
        return any(effect.varies for effect in self.effects)

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights after all effects, and their states under ``INDEX.NAME``."""
        full_scale = weights.abs().amax() if weights.numel() else weights.new_zeros(())
        states: State = {}
        largest = {i: effect._w_max(weights) for i, effect in self._moving_parts() if effect.relative_to_column}
        for index, effect in self._moving_parts():
            weights, state = effect.program_cycle(weights, largest.get(index, w_max), generator)
            states.update({f"{index}.{name}": tensor for name, tensor in state.items()})
        faults = self._faults()
        if faults:
            states[_HEALTHY] = weights.clone()
        for index, fault in faults:
            weights, state = fault.stick(weights, full_scale, generator)
            states.update({f"{index}.{name}": tensor for name, tensor in state.items()})
        return weights, states

    def drift(self, programmed: Tensor, state: State, t_inference: float, generator: torch.Generator) -> Tensor:
        """Return the weights after each effect's drift, then the faults."""
        weights = state[_HEALTHY].to(programmed) if _HEALTHY in state else programmed
        weights = weights.clone()
        for index, effect in self._moving_parts():
            weights = effect.drift(weights, part_of(state, index), t_inference, generator)
        for index, fault in self._faults():
            weights = fault.impose(weights, part_of(state, index))
        return weights

    def terms(self, state: State, n_samples: int) -> dict[Hashable, float]:
        """Return the factors of all effects' patterns, under ``(index, key)``."""
        return {
            (index, key): factor
            for index, effect in self._moving_parts()
            if isinstance(effect, MovingNoise)
            for key, factor in effect.terms(part_of(state, index), n_samples).items()
        }

    def pattern(self, state: State, key: Hashable) -> Tensor:
        """Return one effect's pattern."""
        for index, effect in self._moving_parts():
            if isinstance(effect, MovingNoise) and isinstance(key, tuple) and key[0] == index:
                return effect.pattern(part_of(state, index), key[1])
        raise NabnError(f"pattern must be named by one of the keys of terms(), got {key!r}")

    def hold(self, weights: Tensor, state: State) -> Tensor:
        """Return moved weights with every fault back in place."""
        for index, fault in self._faults():
            weights = fault.hold(weights, part_of(state, index))
        return weights

    def _faults(self) -> list[tuple[int, HoldingNoise]]:
        return [(index, effect) for index, effect in enumerate(self.effects) if isinstance(effect, HoldingNoise)]

    def _moving_parts(self) -> list[tuple[int, WeightNoiseModel]]:
        parts = [(i, effect) for i, effect in enumerate(self.effects) if not isinstance(effect, HoldingNoise)]
        for index, effect in parts:
            effect.tile, effect.cycle = self.tile, self.cycle
            effect.chip_seed = None if self.chip_seed is None else derive_seed(self.chip_seed, "effect", index)
        return parts


def _as_models(effect: object) -> Sequence[WeightNoiseModel]:
    if isinstance(effect, ComposedNoise):
        return copy.deepcopy(effect.effects)
    if isinstance(effect, str):
        effect = {"type": effect}
    if isinstance(effect, Mapping):
        options = {str(key): value for key, value in effect.items()}
        if "type" not in options:
            raise NabnError(f"an effect must say which it is, dict(type='NAME', ...), got {dict(effect)!r}")
        effect = build_noise_model(options.pop("type"), **options)
    if not isinstance(effect, WeightNoiseModel):
        raise NabnError(f"an effect must be a WeightNoiseModel, a name or dict(type='NAME', ...), got {effect!r}")
    # A copy: the same object twice, or in two compositions, would share what is set on it.
    return (copy.deepcopy(effect),)
