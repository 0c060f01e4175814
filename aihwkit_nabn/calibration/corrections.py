"""Low-rank corrections of a chip's layers: what their inputs say about their errors, shared out under a budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aihwkit_nabn.calibration.pairs import Correction
from aihwkit_nabn.calibration.sampling import Positions
from aihwkit_nabn.calibration.session import CalibrationSession
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


@dataclass
class LayerErrors:
    """Second moments of one layer's errors and inputs, over a sample of positions.

    The error is the digital layer's output minus the tiles' on the same inputs, the reference's own.

    Args:
        groups: Of the layer. With more than one, the only input is the mean of a group's.
    """

    groups: int
    count: int = 0
    n_outputs: int = 0
    multiplications: float = 0.0
    mean: Tensor | None = None
    scatter: Tensor | None = None
    signal: Tensor | None = None
    _parts: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)

    def take_in(self, inputs: Tensor, error: Tensor, digital: Tensor) -> None:
        """Take in samples ``[channels, positions]`` of inputs, errors and digital outputs."""
        n = error.shape[1]
        if n == 0:
            return
        x = torch.cat([inputs.float(), error.float(), digital.float()])
        mean = x.mean(1)
        x = x - mean.unsqueeze(1)
        k = len(inputs)
        if self.groups > 1:
            part = inputs.float().repeat_interleave(len(error) // k, 0) if k < len(error) else inputs.float()
            part = part - part.mean(1, keepdim=True)
            e, d = x[k : k + len(error)], x[k + len(error) :]
            now = torch.stack([(part * part).sum(1), (part * e).sum(1), (e * e).sum(1), (d * d).sum(1)]).double()
        else:
            e, d = x[k : k + len(error)], x[k + len(error) :]
            now = torch.cat([x[:k] @ x[:k].T, e @ x[:k].T]).double()
            extra = torch.stack([(e * e).sum(1), (d * d).sum(1)]).double()
            self.signal = extra if self.signal is None else self.signal + extra
        self.scatter = now if self.scatter is None else self.scatter + now
        self.count += n


@dataclass(frozen=True)
class _Solved:
    """What a layer's regression can bring.

    Args:
        gains: Shares of the layer's signal that each rank takes off its error, falling.
        cost: Digital multiplications of a rank.
    """

    gains: list[float]
    cost: float
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
    ranks = _share_out(solved, budget * total)
    corrections = {name: solved[name].cut(rank) for name, rank in ranks.items()}
    return {name: correction for name, correction in corrections.items() if correction is not None}


def _share_out(solved: Mapping[str, _Solved], allowed: float) -> dict[str, int]:
    """Give ranks out, the one that brings most per multiplication first, as long as they fit."""
    ranks = dict.fromkeys(solved, 0)
    queue = [(-layer.gains[0] / layer.cost, name) for name, layer in solved.items() if layer.gains]
    heapq.heapify(queue)
    while queue:
        worth, name = heapq.heappop(queue)
        layer = solved[name]
        if worth >= 0.0 or layer.cost > allowed:
            continue
        allowed -= layer.cost
        ranks[name] += 1
        if ranks[name] < len(layer.gains):
            heapq.heappush(queue, (-layer.gains[ranks[name]] / layer.cost, name))
    return ranks


def _solve(found: LayerErrors, ridge: float) -> _Solved | None:
    if found.scatter is None or found.count < 8:
        return None
    if found.groups > 1:
        inputs, cross, _, signal = found.scatter
        total = float(signal.sum())
        gain = cross / (inputs * (1.0 + ridge)).clamp(min=1e-300)
        gain = gain.masked_fill(inputs <= 0, 0.0)
        share = float((gain * cross).sum()) / total if total > 0 else 0.0
        return _Solved([share], found.n_outputs * len(gain), input_gain=gain)
    assert found.signal is not None
    total = float(found.signal[1].sum())
    k = found.scatter.shape[1]
    inputs, cross = found.scatter[:k], found.scatter[k:]
    size = float(inputs.diagonal().mean())
    if not (size > 0 and total > 0):
        return None
    damped = inputs + ridge * size * torch.eye(k, dtype=inputs.dtype, device=inputs.device)
    factor = torch.linalg.cholesky(damped)
    # Right-hand sides as rows: whitened = cross L^-T.
    whitened = torch.linalg.solve_triangular(factor, cross.T, upper=False).T
    left, values, _ = torch.linalg.svd(whitened, full_matrices=False)
    coefficients = torch.linalg.solve_triangular(factor.T, whitened.T, upper=True).T
    gains = [float(value) ** 2 / total for value in values]
    cost = found.n_outputs * (k + len(cross))
    return _Solved(gains, cost, mixing=left, directions=left.T @ coefficients)


def _measure(session: CalibrationSession) -> dict[str, LayerErrors]:
    """Run the reference once, each of the chip's layers beside its own on the same inputs."""
    layers: dict[str, Any] = {
        name: layer
        for name, layer in named_analog_layers(session.model).items()
        if isinstance(layer, NoiseAwareLayer) and layer.alignment is not None
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
