"""Low-rank corrections of a chip's layers: what their inputs say about their errors, shared out under a budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.sampling import Positions
from aihwkit_nabn.calibration.session import CalibrationSession
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn.alignment import LayerInput, add_correction, add_mean
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.moment import ChipMoment
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products

# Positions per layer that the regressions see in all, at least, and per input channel.
_POSITIONS = 4096
_POSITIONS_PER_INPUT = 3
# Layers with more input channels would need a matrix of gigabytes.
_MOST_INPUTS = 4096


@dataclass(frozen=True)
class Correction:
    """What is added to a layer's output before it is aligned: terms of its inputs.

    Args:
        directions: ``[rank, in_channels]`` or None.
        mixing: ``[channels, rank]`` or None.
        input_gain: Gain of the input mean ``[channels]`` or None.
    """

    directions: Tensor | None = None
    mixing: Tensor | None = None
    input_gain: Tensor | None = None

    def added(self, output: Tensor, given: LayerInput, channel_dim: int) -> Tensor:
        """Return an output with the terms, in its place."""
        if self.input_gain is not None:
            output = add_mean(output, self.input_gain, given.mean().to(output.dtype), channel_dim, True)
        if self.directions is not None and self.mixing is not None:
            output = add_correction(output, given, self.directions, self.mixing, overwrite=True)
        return output

    def scaled(self, scale: Tensor) -> dict[str, Tensor]:
        """Return the parts of an alignment that scales the sum by `scale`."""
        found = {}
        if self.input_gain is not None:
            found["input_gain"] = self.input_gain * scale.to(self.input_gain)
        if self.directions is not None and self.mixing is not None:
            found["directions"] = self.directions
            found["mixing"] = self.mixing * scale.to(self.mixing).unsqueeze(1)
        return found


@dataclass
class LayerErrors:
    """Second moments of one layer's errors and inputs, over a sample of positions.

    The error is the digital layer's output minus the tiles' on the same inputs, the reference's own.

    Args:
        groups: Of the layer. With more than one, the only input is the mean of a group's.
        count: Positions in the sample.
        n_outputs: Positions in all.
        multiplications: The layer's own.
        mean: Of inputs, errors and digital outputs.
        scatter: Sums of products of deviations: inputs with inputs, errors with inputs; squares of the digital outputs.
    """

    groups: int
    count: int = 0
    n_outputs: int = 0
    multiplications: float = 0.0
    mean: tuple[Tensor, Tensor, Tensor] | None = None
    scatter: tuple[Tensor, Tensor, Tensor] | None = None

    def take_in(self, inputs: Tensor, error: Tensor, digital: Tensor) -> None:
        """Take in samples ``[channels, positions]`` of inputs, errors and digital outputs."""
        n = error.shape[1]
        if n == 0:
            return
        if self.groups > 1:
            inputs = inputs.repeat_interleave(len(error) // len(inputs), 0)
        parts = [part.double() for part in (inputs, error, digital)]
        means = [part.mean(1) for part in parts]
        x, e, d = (part - mean.unsqueeze(1) for part, mean in zip(parts, means, strict=True))
        now = [self._products(x, x), self._products(e, x), (d * d).sum(1)]
        if self.mean is not None and self.scatter is not None:
            x, e, d = ((mean - old).unsqueeze(1) for mean, old in zip(means, self.mean, strict=True))
            between = [self._products(x, x), self._products(e, x), (d * d).sum(1)]
            total = self.count + n
            now = [
                new + old + gap * (self.count * n / total)
                for new, old, gap in zip(now, self.scatter, between, strict=True)
            ]
            means = [old + (mean - old) * (n / total) for mean, old in zip(means, self.mean, strict=True)]
        self.mean, self.scatter = (means[0], means[1], means[2]), (now[0], now[1], now[2])
        self.count += n

    def _products(self, a: Tensor, b: Tensor) -> Tensor:
        """Sums over positions of each channel with each other one; channel by channel where there are groups."""
        return a @ b.T if self.groups == 1 else (a * b).sum(1)


@dataclass(frozen=True)
class _Solved:
    """What a layer's regression can bring.

    Args:
        gains: Shares of the layer's signal that each rank takes off its error, falling.
        cost: Digital multiplications of a rank.
        numbers: That a rank stores.
    """

    gains: list[float]
    cost: float
    numbers: int
    mixing: Tensor | None = None
    directions: Tensor | None = None
    input_gain: Tensor | None = None

    def cut(self, rank: int) -> Correction | None:
        if rank == 0:
            return None
        if self.input_gain is not None:
            return Correction(input_gain=self.input_gain)
        assert self.mixing is not None and self.directions is not None
        return Correction(directions=self.directions[:rank].clone(), mixing=self.mixing[:, :rank].clone())


@torch.no_grad()
def find_corrections(session: CalibrationSession, budget: float, ridge: float) -> dict[str, Correction]:
    """Return the corrections of a chip's layers that take off the most error for their multiplications.

    The reference runs once; beside each of its layers the chip's runs on the same inputs. Each layer's error is
    regressed on its inputs' window means by ridge regression, cut to the rank that the layer is given: reduced-rank
    regression. Ranks go to the layers where they take off the largest share of the layer's signal per multiplication.

    Args:
        session: The calibration at hand.
        budget: Share of the network's multiplications that the corrections may cost.
        ridge: Of the regressions, in parts of the inputs' mean variance.

    Returns:
        By layer; those that get none are left out.
    """
    errors = _measure(session)
    solved = {}
    for name, found in errors.items():
        result = _solve(found, ridge)
        if result is not None:
            solved[name] = result
    total = sum(found.multiplications for found in errors.values())
    ranks = share_out({name: (layer.gains, layer.cost) for name, layer in solved.items()}, budget * total)
    corrections = {name: solved[name].cut(rank) for name, rank in ranks.items()}
    spent = sum(rank * solved[name].cost for name, rank in ranks.items()) / total if total else 0.0
    stored = sum(rank * solved[name].numbers for name, rank in ranks.items())
    session.notes.append(
        f"corrections cost {100 * spent:.1f} percent of the network's multiplications and store {stored:,} numbers"
    )
    left_out = [name for name in errors if name not in solved]
    if left_out:
        session.notes.append(f"{len(left_out)} layers have too many inputs, or none, to be corrected")
    return {name: correction for name, correction in corrections.items() if correction is not None}


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


def _solve(found: LayerErrors, ridge: float) -> _Solved | None:
    if found.scatter is None:
        return None
    inputs, cross, signal = found.scatter
    total = float(signal.sum())
    if not total > 0:
        return None
    if found.groups > 1:
        gain = (cross / (inputs * (1.0 + ridge))).nan_to_num(0.0, posinf=0.0, neginf=0.0)
        return _Solved([float((gain * cross).sum()) / total], found.n_outputs * len(gain), len(gain), input_gain=gain)
    k, size = len(inputs), float(inputs.diagonal().mean())
    if not size > 0:
        return None
    damped = inputs + ridge * size * torch.eye(k, dtype=inputs.dtype, device=inputs.device)
    factor = torch.linalg.cholesky(damped)
    # Right-hand sides as rows: whitened = cross L^-T.
    whitened = torch.linalg.solve_triangular(factor, cross.T, upper=False).T
    left, values, _ = torch.linalg.svd(whitened, full_matrices=False)
    coefficients = torch.linalg.solve_triangular(factor.T, whitened.T, upper=True).T
    gains = [float(value) ** 2 / total for value in values]
    numbers = k + len(cross)
    return _Solved(gains, found.n_outputs * numbers, numbers, mixing=left, directions=left.T @ coefficients)


def _measure(session: CalibrationSession) -> dict[str, LayerErrors]:
    """Run the reference once, each of the chip's layers beside its own on the same inputs."""
    layers: dict[str, Any] = {
        name: layer for name, layer in named_analog_layers(session.model).items() if isinstance(layer, NoiseAwareLayer)
    }
    twins = session.reference_layers()
    batches = session.all_batches()
    found: dict[str, LayerErrors] = {}
    rows: dict[tuple[str, int], int] = {}
    moment = ChipMoment.take(session.model)

    def compare(name: str, given: LayerInput, raw: Tensor, digital: Tensor, call: int, size: int) -> None:
        layer = layers[name]
        groups = given.linear_map.groups
        n_in = layer.analog_module.in_size
        entry = found.setdefault(name, LayerErrors(groups))
        positions = digital.numel() // max(layer.analog_module.out_size, 1)
        entry.n_outputs += positions
        entry.multiplications += positions * layer.analog_module.out_size * n_in
        inputs = given.mean() if groups > 1 else given.window_mean() if _inputs(layer) <= _MOST_INPUTS else None
        if inputs is None or digital.numel() == 0:
            return
        if not bool(torch.isfinite(raw).all() & torch.isfinite(digital).all()):
            raise CalibrationError(f"layer {name!r} produced NaN or infinite values on the calibration set")
        k = inputs.shape[session.alignments[name].channel_dim]
        wanted = max(max(_POSITIONS, _POSITIONS_PER_INPUT * k) // max(session.n_samples, 1), 2)
        key = name, call
        positions_of = Positions(digital.shape, session.alignments[name].channel_dim, rows.get(key, 0), size, wanted)
        rows[key] = rows.get(key, 0) + digital.shape[0]
        entry.take_in(*(positions_of.take(part) for part in (inputs, digital - raw, digital)))

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
