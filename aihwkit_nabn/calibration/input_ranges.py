"""Static input ranges of the tiles, from unlabelled images: which inputs the DAC can take before it cuts them off."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import ForwardFn, check_batches, default_forward, describe, limited
from aihwkit_nabn.calibration.ranks import union_of_ranks
from aihwkit_nabn.chip.input_ranges import ranged_layers, set_input_range
from aihwkit_nabn.errors import CalibrationError, NabnError, check_count, check_number
from aihwkit_nabn.nn.calls import first_argument, watched
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products
from aihwkit_nabn.simulator.converters import input_converter, output_converter
from aihwkit_nabn.simulator.mvm import tiles_of

_BINS = 2048


@torch.no_grad()
def calibrate_input_ranges(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    quantile: float | None = None,
    max_samples: int | None = None,
    forward_fn: ForwardFn | None = None,
    sharded: bool = True,
) -> dict[str, float]:
    """Set the input range of every layer that has one, for all its tiles, from the inputs it gets.

    The network runs without converters and read noise meanwhile, so that no layer's range depends on another's. Inputs
    are counted in histograms: memory does not grow with their number, and only their absolute value matters.

    By default a range is the one with the least error at the layer's output: squared, clipping costs what is cut off
    and rounding a twelfth of a step, both times the squared weights of an output; output noise and ADC rounding
    grow with the range they are scaled with.

    Args:
        model: An analog model, programmed or not.
        batches: Unlabelled batches, as for `calibrate`.
        quantile: Take this quantile of the absolute inputs instead; 1 is the maximum.
        max_samples: Stop after this many samples; None takes all.
        forward_fn: Runs the model on a batch, as for `calibrate`.
        sharded: As for `calibrate`, in a torch.distributed run.

    Returns:
        The range of each layer by name; empty if no layer has one.

    Raises:
        CalibrationError: the calibration set is empty or not finite, a batch cannot be run, or an input is not finite.
            The ranges are as they were.
        NabnError: an argument has a value that is not allowed.
    """
    if quantile is not None:
        quantile = check_number("quantile", quantile, exclusive_minimum=0.0, maximum=1.0)
    if max_samples is not None:
        check_count("max_samples", max_samples, minimum=1)
    check_batches(batches, "calibrate_input_ranges")
    layers = ranged_layers(model)
    if not layers:
        return {}
    inputs = {name: AbsHistogram(name) for name in layers}
    run = forward_fn or default_forward
    n_samples = 0
    with (
        union_of_ranks(batches, sharded) as own,
        evaluation_mode(model),
        exact_products(model),
        _observing(layers, inputs),
    ):
        for batch, size in limited(own, max_samples, run):
            if size == 0:
                continue
            n_samples += size
            try:
                run(model, batch)
            except NabnError:
                raise
            except Exception as error:
                raise CalibrationError(
                    f"the analog model failed on a batch ({describe(batch)}): {type(error).__name__}: {error}"
                ) from error
    if n_samples == 0:
        raise CalibrationError("the calibration set is empty: no batch with a sample came out of it")
    ranges = {}
    for name, layer in layers.items():
        seen = inputs[name]
        if seen.maximum == 0.0:  # never called, or by zeros only: nothing to go by
            continue
        ranges[name] = least_error_range(seen, layer) if quantile is None else seen.quantile(quantile)
    for name, value in ranges.items():
        set_input_range(layers[name], value)
    return ranges


@contextmanager
def exact_products(model: nn.Module) -> Iterator[None]:
    """Let analog layers multiply exactly with the weights their tiles hold, inside the block."""
    layers = [layer for layer in named_analog_layers(model).values() if isinstance(layer, NoiseAwareLayer)]
    before = [layer.exact for layer in layers]
    try:
        for layer in layers:
            layer.exact = True
        yield
    finally:
        for layer, exact in zip(layers, before, strict=True):
            layer.exact = exact


@contextmanager
def _observing(layers: dict[str, nn.Module], inputs: dict[str, AbsHistogram]) -> Iterator[None]:
    def observe(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        x = first_argument(args, kwargs)
        if isinstance(x, Tensor):
            inputs[name].add(x)

    own = {name: layer for name, layer in layers.items() if isinstance(layer, NoiseAwareOwnForward)}
    others = {name: layer for name, layer in layers.items() if name not in own}
    with watched(others, observe), watched_products(own, lambda name, call, product: inputs[name].add(call.input)):
        yield


class AbsHistogram:
    """Counts absolute values in equal bins from 0 to a bound that doubles when it is exceeded.

    Args:
        name: Whose values, for messages.

    Attributes:
        maximum: The largest value so far.
        n_zeros: How many values were exactly 0; they are not in the bins.
    """

    def __init__(self, name: str = "values") -> None:
        self.name = name
        self.bound = 0.0
        self.maximum = 0.0
        self.n_zeros = 0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor.

        Raises:
            CalibrationError: one is not finite.
        """
        if values.numel() == 0:
            return
        values = values.detach().abs().flatten()
        top = float(values.max())
        if not math.isfinite(top):
            raise CalibrationError(f"the input of layer {self.name!r} is not finite")
        self.maximum = max(self.maximum, top)
        zeros = values.numel() - int(torch.count_nonzero(values))
        self.n_zeros += zeros
        if top == 0.0:
            return
        if self.bound == 0.0:
            self.bound = top
        while self.bound < top:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.bound *= 2.0
        # Single precision counts exactly up to 16 million only, so large tensors are counted in parts.
        for part in values.split(2**23):
            self.counts += torch.histc(part.float(), _BINS, 0.0, self.bound).double().cpu()
        self.counts[0] -= zeros

    @property
    def edges(self) -> Tensor:
        """Upper edges of the bins."""
        return torch.arange(1, _BINS + 1, dtype=torch.float64) * (self.bound / _BINS)

    def quantile(self, q: float) -> float:
        """Return the value that the share `q` of all values does not exceed, to a bin's width."""
        if q >= 1.0:
            return self.maximum
        wanted = q * (float(self.counts.sum()) + self.n_zeros) - self.n_zeros
        index = int(torch.searchsorted(self.counts.cumsum(0), max(wanted, 0.0)))
        return min(float(self.edges[min(index, _BINS - 1)]), self.maximum)


def least_error_range(seen: AbsHistogram, layer: nn.Module) -> float:
    """Return the input range with the least mean squared error at the layer's output, see `calibrate_input_ranges`."""
    tiles = tiles_of(layer)
    io = tiles[0].rpu_config.forward
    if io.is_perfect:
        return seen.maximum
    dac, adc = input_converter(io), output_converter(io)
    n_values = float(seen.counts.sum()) + seen.n_zeros
    edges, counts = seen.edges, seen.counts
    middles = edges - edges[0] / 2
    # Sums over all values above each edge, of which (v - edge)^2 is made.
    above = [(counts * middles**power).flip(0).cumsum(0).flip(0) for power in range(3)]
    above = [torch.cat([part[1:], part.new_zeros(1)]) for part in above]
    clipped = above[2] - 2.0 * edges * above[1] + edges**2 * above[0]
    rounded = counts.cumsum(0) * (edges * dac.step) ** 2 / 12.0
    # Squared weights of an output, over all tiles that add to it, in the tiles' units.
    squares = torch.stack([tile.tile.get_weights().double().pow(2).sum() for tile in tiles]).sum()
    outputs = sum(tile.out_size for tile in tiles)
    weight = float(squares) / max(outputs, 1)
    at_output = edges**2 * (io.out_noise**2 + adc.step**2 / 12.0)
    error = weight * (clipped + rounded) / n_values + at_output
    return min(float(edges[int(error.argmin())]), seen.maximum)
