"""Low-rank corrections of a chip's layers: ranks shared out under a budget of multiplications."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.regression import Correction, HalvedMoments, InputMoments, Solved, solve, solve_checked
from aihwkit_nabn.calibration.sampling import Positions
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import LayerInput
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.moment import ChipMoment
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products

# Positions per layer that the regressions see in all, at least, and per input channel.
_POSITIONS = 4096
_POSITIONS_PER_INPUT = 3
# Layers with more input channels would need a matrix of gigabytes.
_MOST_INPUTS = 4096
# Where tiles and digital layer, each on its own network's inputs, have less in common than this, they may have looked
# at different things: a detector's regions.
_LEAST_CORRELATION = 0.5


@dataclass(frozen=True)
class Regressed:
    """How a layer is to be corrected.

    Args:
        rank: That it has been given.
        own: The correction of its own error, on the reference's inputs.
        ridge: Of the regression.
        groups: Of the layer.
    """

    rank: int
    own: Correction
    ridge: float
    groups: int

    @property
    def n_inputs(self) -> int:
        """What an output is regressed on: numbers of its own."""
        return 1 if self.own.directions is None else self.own.directions.shape[1]

    def solve(self, found: HalvedMoments) -> Correction:
        """Return the correction of the error that the layer makes on the chip's own inputs.

        Where the two cannot be compared it is that of the layer's own error.
        """
        whole = found.whole()
        if whole.count == 0 or whole.correlation < _LEAST_CORRELATION:
            return self.own
        return solve_checked(found, self.rank, self.ridge, self.own)


@dataclass
class _Layer:
    """One layer's moments on the reference's inputs, and what the layer costs.

    Args:
        moments: Of inputs, tiles and digital layer.
        n_outputs: Positions in all.
        multiplications: The layer's own.
    """

    moments: InputMoments
    n_outputs: int = 0
    multiplications: float = 0.0


def regression_inputs(given: LayerInput, groups: int) -> Tensor:
    """Return what a layer's error is regressed on: ``[..., groups or in_channels, *spatial]``."""
    return given.mean() if groups > 1 else given.window_mean()


def positions_wanted(n_inputs: int, n_samples: int) -> int:
    """Return how many positions of each calibration sample a regression on so many inputs takes."""
    return max(max(_POSITIONS, _POSITIONS_PER_INPUT * n_inputs) // max(n_samples, 1), 2)


@torch.no_grad()
def find_corrections(session: CalibrationSession, budget: float, ridge: float) -> dict[str, Regressed]:
    """Return how a chip's layers are corrected so that most error is taken off for the multiplications.

    The reference runs once; beside each of its layers the chip's runs on the same inputs. Each layer's error is
    regressed on its inputs' window means. Ranks go to the layers where they take off the largest share of the layer's
    signal per multiplication.

    Args:
        session: The calibration at hand.
        budget: Share of the network's multiplications that the corrections may cost.
        ridge: Of the regressions, in parts of the inputs' mean variance.

    Returns:
        By layer; those that get none are left out.
    """
    layers = _measure(session)
    solved: dict[str, Solved] = {}
    for name, layer in layers.items():
        result = solve(layer.moments, ridge)
        if result is not None:
            solved[name] = result
    costs = {name: layers[name].n_outputs * result.numbers_of_a_rank for name, result in solved.items()}
    total = sum(layer.multiplications for layer in layers.values())
    ranks = share_out({name: (solved[name].gains, cost) for name, cost in costs.items()}, budget * total)
    spent = sum(rank * costs[name] for name, rank in ranks.items()) / total if total else 0.0
    stored = sum(rank * solved[name].numbers_of_a_rank for name, rank in ranks.items())
    session.notes.append(
        f"corrections cost {100 * spent:.1f} percent of the network's multiplications and store {stored:,} numbers"
    )
    left_out = [name for name in layers if name not in solved]
    if left_out:
        session.notes.append(f"{len(left_out)} layers have too many inputs, or none, to be corrected")
    corrections = {}
    for name, rank in ranks.items():
        own = solved[name].cut(rank)
        if own is not None:
            corrections[name] = Regressed(rank, own, ridge, layers[name].moments.groups)
    return corrections


def share_out(layers: Mapping[str, tuple[Sequence[float], float]], allowed: float) -> dict[str, int]:
    """Return a rank for each layer: the next rank goes where it brings most for its cost, as long as one fits.

    Args:
        layers: What each further rank of a layer brings, falling, and what one costs.
        allowed: The cost in all.
    """
    ranks = dict.fromkeys(layers, 0)
    queue = [(-gains[0] / cost, name) for name, (gains, cost) in layers.items() if gains and cost > 0]
    heapq.heapify(queue)
    while queue:
        worth, name = heapq.heappop(queue)
        gains, cost = layers[name]
        if worth >= 0.0 or cost > allowed:
            continue
        allowed -= cost
        ranks[name] += 1
        if ranks[name] < len(gains):
            heapq.heappush(queue, (-gains[ranks[name]] / cost, name))
    return ranks


def _measure(session: CalibrationSession) -> dict[str, _Layer]:
    """Run the reference once, each of the chip's layers beside its own on the same inputs."""
    layers: dict[str, Any] = {
        name: layer for name, layer in named_analog_layers(session.model).items() if isinstance(layer, NoiseAwareLayer)
    }
    twins = session.reference_layers()
    batches = session.all_batches()
    found: dict[str, _Layer] = {}
    rows: dict[tuple[str, int], int] = {}
    moment = ChipMoment.take(session.model)

    def compare(name: str, given: LayerInput, raw: Tensor, digital: Tensor, call: int, size: int) -> None:
        layer = layers[name]
        groups = given.linear_map.groups
        n_in = layer.analog_module.in_size
        entry = found.setdefault(name, _Layer(InputMoments(groups)))
        positions = digital.numel() // max(layer.analog_module.out_size, 1)
        entry.n_outputs += positions
        entry.multiplications += positions * layer.analog_module.out_size * n_in
        if digital.numel() == 0 or (groups == 1 and _inputs(layer) > _MOST_INPUTS):
            return
        inputs = regression_inputs(given, groups)
        if not bool(torch.isfinite(raw).all() & torch.isfinite(digital).all()):
            raise CalibrationError(f"layer {name!r} produced NaN or infinite values on the calibration set")
        channel_dim, key = session.alignments[name].channel_dim, (name, call)
        wanted = positions_wanted(inputs.shape[channel_dim], session.n_samples)
        positions_of = Positions(digital.shape, channel_dim, rows.get(key, 0), size, wanted)
        rows[key] = rows.get(key, 0) + digital.shape[0]
        entry.moments.take_in(*(positions_of.take(part) for part in (inputs, raw, digital)))

    try:
        for number, (batch, size) in enumerate(zip(batches, session.batch_sizes, strict=True)):
            with _beside(layers, twins, compare, size):
                session.run_reference(batch, number)
    finally:
        moment.restore()
    return found


def _inputs(layer: Any) -> int:
    n: int = layer.analog_module.in_size // max(torch.Size(layer.linear_map.kernel_size).numel(), 1)
    return n


@contextmanager
def _beside(layers: Mapping[str, Any], twins: Mapping[str, Any], compare: Any, size: int) -> Iterator[None]:
    """Run the chip's layer beside each of the reference's calls, its raw product handed to `compare`."""
    own = {name: layer for name, layer in layers.items() if isinstance(layer, NoiseAwareOwnForward) and name in twins}
    others = {name: twins[name] for name in layers if name not in own and name in twins}
    calls: dict[str, int] = {}

    def raw_of(name: str, run: Any) -> tuple[Tensor, LayerInput] | None:
        seen: list[tuple[Tensor, LayerInput | None]] = []

        def observe(output: Tensor, given: LayerInput | None) -> Tensor:
            seen.append((output, given))
            return output

        alignment = layers[name].alignment
        alignment.observer = observe
        try:
            run()
        finally:
            alignment.observer = None
        return None if not seen or seen[0][1] is None else (seen[0][0], seen[0][1])

    def hand_over(name: str, run: Any, digital: Tensor) -> None:
        calls[name] = calls.get(name, -1) + 1
        found = raw_of(name, run)
        if found is not None and found[0].shape == digital.shape:
            compare(name, found[1], found[0], digital, calls[name], size)

    def of_layer(name: str, args: Any, kwargs: Any, output: Any) -> None:
        hand_over(name, lambda: layers[name].forward(*args, **kwargs), output)

    def of_product(name: str, call: Any, product: Tensor) -> None:
        hand_over(name, lambda: layers[name]._product(call), product)

    with watched(others, of_layer), watched_products(own, of_product, twins):
        yield
