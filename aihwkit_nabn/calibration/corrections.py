"""Low-rank corrections of a chip's layers: ranks shared out under a budget of multiplications."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aihwkit_nabn.calibration.regression import Correction, HalvedMoments, InputMoments, Solved, solve, solve_checked
from aihwkit_nabn.calibration.report import CorrectionCost
from aihwkit_nabn.calibration.sampling import Positions
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.chip.moment import ChipMoment
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import LayerInput
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products
from aihwkit_nabn.simulator.product.linear_map import size_product

# Positions per layer that the regressions see in all, at least, and per input channel.
_POSITIONS = 4096
_POSITIONS_PER_INPUT = 3
# A regression on fewer samples than this fits what is special about them, and harms the chip.
_FEWEST_SAMPLES = 3
# Layers with more input channels would need a matrix of gigabytes.
_MOST_INPUTS = 4096
# Where tiles and digital layer, each on its own network's inputs, have less in common than this, they may have looked
# at different things: a detector's regions.
_LEAST_CORRELATION = 0.5


@dataclass(frozen=True)
class Regressed:
    """How a layer is to be corrected; `own` is the correction of its own error, on the reference's inputs."""

    rank: int
    own: Correction
    ridge: float
    groups: int

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
    """One layer's moments on the reference's inputs, its output positions and its multiplications."""

    moments: InputMoments
    n_outputs: int = 0
    multiplications: float = 0.0


def regression_inputs(given: LayerInput, groups: int) -> Tensor:
    """Return what a layer's error is regressed on: ``[..., groups or in_channels, *spatial]``."""
    return given.mean() if groups > 1 else given.window_mean()


class LayerErrors:
    """The errors that a chip's layers make on the reference's own inputs, measured beside the reference while it runs.

    A context: on leaving, the chip's streams are where they were.
    """

    def __init__(self, session: CalibrationSession) -> None:
        self._session = session
        self._layers: dict[str, Any] = {
            name: layer
            for name, layer in named_analog_layers(session.model).items()
            if isinstance(layer, NoiseAwareLayer)
        }
        self._found: dict[str, _Layer] = {}
        self._rows: dict[tuple[str, int], int] = {}

    def __enter__(self) -> LayerErrors:
        self._moment = ChipMoment.take(self._session.model)
        return self

    def __exit__(self, *args: object) -> None:
        self._moment.restore()

    def positions_wanted(self, name: str) -> int:
        """Return how many positions of each calibration sample tell of a layer's errors."""
        layer = self._layers.get(name)
        if layer is None:
            return 0
        n_inputs = _inputs(layer) if layer.linear_map.groups == 1 else 1
        return max(max(_POSITIONS, _POSITIONS_PER_INPUT * n_inputs) // max(self._session.n_samples, 1), 2)

    @contextmanager
    def beside(self, twins: Mapping[str, Any], n_samples: int, note: Callable[[str, Any], None]) -> Iterator[None]:
        """Run the chip's layer beside each call of its twin in the reference, on the same inputs.

        Args:
            twins: The reference's layers by name.
            n_samples: In the batch that is run inside the block.
            note: Called with the name and every output of the reference's layers, as the chip's alignments see it.
        """
        layers = self._layers.items()
        own = {name: layer for name, layer in layers if isinstance(layer, NoiseAwareOwnForward) and name in twins}
        others = {name: twin for name, twin in twins.items() if name not in own}
        calls: dict[str, int] = {}

        def hand_over(name: str, digital: Any, run: Callable[[Any], Any]) -> None:
            note(name, digital)
            if name in self._layers:
                calls[name] = calls.get(name, -1) + 1
                self._compare(name, digital, run, calls[name], n_samples)

        def of_layer(name: str, args: Any, kwargs: Any, output: Any) -> None:
            hand_over(name, output, lambda layer: layer.forward(*args, **kwargs))

        def of_product(name: str, call: Any, product: Tensor) -> None:
            hand_over(name, product, lambda layer: layer._product(call))

        with watched(others, of_layer), watched_products(own, of_product, twins):
            yield

    def _compare(self, name: str, digital: Tensor, run: Callable[[Any], Any], call: int, n_samples: int) -> None:
        layer = self._layers[name]
        seen = _raw_product(layer, run)
        if seen is None or seen[0].shape != digital.shape:
            return
        raw, given = seen
        groups = given.linear_map.groups
        entry = self._found.setdefault(name, _Layer(InputMoments(groups)))
        positions = digital.numel() // max(layer.analog_module.out_size, 1)
        entry.n_outputs += positions
        entry.multiplications += given.linear_map.multiplications(
            given.inputs, positions, layer.analog_module.out_size * layer.analog_module.in_size
        )
        if digital.numel() == 0 or (groups == 1 and _inputs(layer) > _MOST_INPUTS):
            return
        first_row = self._rows.get((name, call), 0)
        channel_dim = self._session.alignments[name].channel_dim
        places = Positions(digital.shape, channel_dim, first_row, n_samples, self.positions_wanted(name))
        self._rows[name, call] = first_row + digital.shape[0]
        entry.moments.take_in(*(places.take(part) for part in (regression_inputs(given, groups), raw, digital)))
        if not entry.moments.is_finite:
            raise CalibrationError(f"the output of layer {name!r} holds NaN or infinite values on the calibration set")

    def give_ranks(self, budget: float, ridge: float) -> dict[str, Regressed]:
        """Return the corrections that take off most error for the multiplications they cost.

        Each layer's error is regressed on its inputs' window means. Ranks go to the layers where they take off the
        largest share of the layer's signal per multiplication; none where there are fewer than three samples.

        Args:
            budget: Share of the network's multiplications that the corrections may cost.
            ridge: Of the regressions, in parts of the inputs' mean variance.

        Returns:
            By layer; those that get none are left out.
        """
        notes = self._session.notes
        if self._session.n_samples < _FEWEST_SAMPLES:
            notes.append(f"no layer corrected, only aligned: with fewer than {_FEWEST_SAMPLES} images that does harm")
            return {}
        solved: dict[str, Solved] = {}
        for name, layer in self._found.items():
            result = solve(layer.moments, ridge)
            if result is not None:
                solved[name] = result
        costs = {name: self._found[name].n_outputs * result.numbers_of_a_rank for name, result in solved.items()}
        total = sum(layer.multiplications for layer in self._found.values())
        ranks = share_out({name: (solved[name].gains, cost) for name, cost in costs.items()}, budget * total)
        spent = sum(rank * costs[name] for name, rank in ranks.items()) / total if total else 0.0
        stored = sum(rank * solved[name].numbers_of_a_rank for name, rank in ranks.items())
        cost = CorrectionCost(share=spent, n_numbers=stored, ranks={name: rank for name, rank in ranks.items() if rank})
        notes.append(str(cost))
        self._session.corrections = cost
        left_out = len(self._found) - len(solved)
        if left_out:
            notes.append(
                f"{left_out} layer{'s' * (left_out > 1)} not corrected: too many inputs, or inputs that do not vary"
            )
        corrections = {}
        for name, rank in ranks.items():
            own = solved[name].cut(rank)
            if own is not None:
                corrections[name] = Regressed(rank, own, ridge, self._found[name].moments.groups)
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


def _raw_product(layer: Any, run: Callable[[Any], Any]) -> tuple[Tensor, LayerInput] | None:
    """Return what a layer of the chip computes before its alignment, and what it was given."""
    seen: list[tuple[Tensor, LayerInput | None]] = []

    def observe(output: Tensor, given: LayerInput | None) -> Tensor:
        seen.append((output, given))
        return output

    layer.alignment.observer = observe
    try:
        run(layer)
    finally:
        layer.alignment.observer = None
    return None if not seen or seen[0][1] is None else (seen[0][0], seen[0][1])


def _inputs(layer: Any) -> int:
    n: int = layer.analog_module.in_size // size_product(layer.linear_map.kernel_size)
    return n
