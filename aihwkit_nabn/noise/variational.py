"""Variational noise: weight noise whose strength changes while the network runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from aihwkit_nabn.errors import NabnError, check_number, suggestion
from aihwkit_nabn.noise.base import State
from aihwkit_nabn.noise.registration import register_noise_model
from aihwkit_nabn.noise.runtime import MovingNoise
from aihwkit_nabn.seeding import derive_seed

SCHEDULES = ("constant", "ramp", "sine", "steps", "walk")
_WALK_BLOCK = 1024


@lru_cache(maxsize=4096)
def _walk_block(seed: int, block: int) -> Tensor:
    """Partial sums of the walk's numbers in one block; blocks of their own so that any n can be asked for."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "walk", block))
    return torch.randn(_WALK_BLOCK, generator=generator, dtype=torch.float64).cumsum(0)


@lru_cache(maxsize=1024)
def _walk(seed: int, n_samples: int) -> float:
    """Return the sum of the first `n_samples` numbers."""
    whole, rest = divmod(n_samples, _WALK_BLOCK)
    total = sum(float(_walk_block(seed, block)[-1]) for block in range(whole))
    return total + (float(_walk_block(seed, whole)[rest - 1]) if rest else 0.0)


def _check_steps(steps: object) -> tuple[float, ...]:
    if isinstance(steps, str):
        entries: list[object] = [_number(part) for part in steps.split("/") if part.strip()]
    elif isinstance(steps, Sequence):
        entries = list(steps)
    else:
        entries = [steps]  # the command line reads "steps=0.5" as a number
    return tuple(check_number("steps", entry, minimum=0.0) for entry in entries)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@register_noise_model("variational")
class VariationalNoise(MovingNoise):
    """Additive Gaussian weight noise that follows a schedule as samples go through the chip.

    Tsai et al. (arXiv 2007.03230) name "variational noise" in their abstract without defining it in what could be read;
    this definition is ours. After n samples

    ``W(n) = W + sigma s(n) w_max D(n)``,

    w_max being the largest |weight| of the layer and D(n) a pattern of standard normal numbers, one per weight. The
    schedule s(n), with p = `period_samples`:

    * ``constant``: 1;
    * ``ramp``: from `start` to 1 on a line over p samples, then 1;
    * ``sine``: ``start + (1 - start) (1 - cos(2 pi n / p)) / 2``;
    * ``steps``: the first of `steps`, after p samples the second, and so on; the last one stays;
    * ``walk``: ``|start + B(n) / sqrt(p)|``, B a sum of n standard normal numbers, one walk for the whole chip: after p
      samples it has moved by 1, root mean square.

    The pattern stays the same, or rotates from one independent pattern K to the next in `turnover_samples` samples,
    ``D(n) = cos(pi f / 2) K_j + sin(pi f / 2) K_{j+1}``, ``j + f = n / turnover_samples``, which keeps it standard
    normal at every n.

    n counts what goes through the chip: see `aihwkit_nabn.chip.variation`. All samples of a batch meet the same
    weights. Where nothing counts (aihwkit's own functions), the chip stays at n = 0. Times: any.

    Args:
        sigma: Noise at s(n) = 1 as a fraction of the layer's maximum; 0 switches the model off.
        schedule: One of the above.
        period_samples: p, > 0.
        start: s at n = 0 of ``ramp``, ``sine`` and ``walk``, >= 0.
        steps: Values of s for ``steps``, >= 0: numbers, or a text with them between slashes, ``"0.2/1/0.5"``.
        turnover_samples: Samples until the pattern is another one, > 0; None: it stays.

    Raises:
        NabnError: an argument is out of range, or there are steps without schedule ``steps`` or the other way round.
    """

    strength: ClassVar[str] = "sigma"
    varies: ClassVar[bool] = True
    cycle_to_cycle: ClassVar[bool] = False

    def __init__(
        self,
        sigma: float = 0.06,
        schedule: str = "ramp",
        period_samples: float = 1000.0,
        start: float = 0.25,
        steps: Sequence[float] | str = (),
        turnover_samples: float | None = None,
    ) -> None:
        super().__init__()
        self.sigma = check_number("sigma", sigma, minimum=0.0)
        if schedule not in SCHEDULES:
            raise NabnError(
                f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}{suggestion(schedule, SCHEDULES)}"
            )
        self.schedule = schedule
        self.period_samples = check_number("period_samples", period_samples, exclusive_minimum=0.0)
        self.start = check_number("start", start, minimum=0.0)
        self.steps = _check_steps(steps)
        if bool(self.steps) != (schedule == "steps"):
            raise NabnError(f"steps must hold numbers for schedule 'steps' and for no other, got {steps!r}")
        self.turnover_samples = (
            None
            if turnover_samples is None
            else check_number("turnover_samples", turnover_samples, exclusive_minimum=0.0)
        )

    def program(self, weights: Tensor, w_max: Tensor, generator: torch.Generator) -> tuple[Tensor, State]:
        """Return the weights with the noise as it is at n = 0, and what the noise at other n is made from."""
        unit = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
        seed = torch.randint(2**62, (), generator=generator)
        state = {"pattern": w_max * unit, "w_max": w_max.clone(), "seed": seed}
        return weights + self.sigma * self.schedule_at(0, int(seed)) * state["pattern"], state

    def terms(self, state: State, n_samples: int) -> dict[Hashable, float]:
        """Return the factors of the patterns K_j; the noise at n = 0, which is in the weights, is taken off."""
        seed = int(state["seed"])
        now = self.sigma * self.schedule_at(n_samples, seed)
        factors: dict[Hashable, float] = {0: -self.sigma * self.schedule_at(0, seed)}
        if self.turnover_samples is None:
            factors[0] += now
            return factors
        turn = n_samples / self.turnover_samples
        j = math.floor(turn)
        for index, factor in ((j, math.cos(0.5 * math.pi * (turn - j))), (j + 1, math.sin(0.5 * math.pi * (turn - j)))):
            factors[index] = factors.get(index, 0.0) + now * factor
        return factors

    def pattern(self, state: State, key: Hashable) -> Tensor:
        """Return ``w_max K_j`` in the tile's units."""
        first = state["pattern"]
        if key == 0:
            return first
        generator = torch.Generator().manual_seed(derive_seed(int(state["seed"]), "pattern", key))
        return state["w_max"] * torch.randn(first.shape, generator=generator, dtype=first.dtype)

    def schedule_at(self, n_samples: int, seed: int = 0) -> float:
        """Return s(n); a random walk is the chip's, or of `seed` where the tile stands alone."""
        turn = n_samples / self.period_samples
        if self.schedule == "ramp":
            return self.start + (1.0 - self.start) * min(turn, 1.0)
        if self.schedule == "sine":
            return self.start + (1.0 - self.start) * 0.5 * (1.0 - math.cos(2.0 * math.pi * turn))
        if self.schedule == "steps":
            return self.steps[min(math.floor(turn), len(self.steps) - 1)]
        if self.schedule == "walk":
            walked = _walk(seed if self.chip_seed is None else derive_seed(self.chip_seed, "walk"), n_samples)
            return abs(self.start + walked / math.sqrt(self.period_samples))
        return 1.0
