"""Set the static input ranges of the tiles from unlabelled images: the largest inputs that the DAC does not cut off."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import ForwardFn, check_batches, default_forward, limited, run_batch
from aihwkit_nabn.calibration.histogram import AbsHistogram, LogHistogram
from aihwkit_nabn.calibration.range_rule import least_error_bounds, least_error_range, reads_of
from aihwkit_nabn.calibration.ranks import union_of_ranks
from aihwkit_nabn.errors import CalibrationError, check_count, check_number, some
from aihwkit_nabn.nn.calls import first_argument, watched
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.input_ranges import own_bounds, ranged_layers, set_input_range, set_output_bounds
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products
from aihwkit_nabn.simulator.product.crossbar import row_product
from aihwkit_nabn.simulator.product.linear_map import LinearMap
from aihwkit_nabn.simulator.product.tiles import is_plain_torch, tile_rows, tiles_of


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
        meaning = "the share of inputs in range"
        quantile = check_number("quantile", quantile, exclusive_minimum=0.0, maximum=1.0, meaning=meaning)
    if max_samples is not None:
        check_count("max_samples", max_samples, minimum=1)
    check_batches(batches, "calibrate_input_ranges")
    layers = ranged_layers(model)
    if not layers:
        return {}
    inputs = {name: AbsHistogram(name) for name in layers}
    products = {
        name: [LogHistogram(name, int(reads[-1]) + 1) for reads in reads_of(layer)]
        for name, layer in layers.items()
        if _has_bounded_adc(layer)
    }
    run = forward_fn or default_forward
    n_samples = 0
    with (
        union_of_ranks(batches, sharded) as own,
        evaluation_mode(model),
        exact_products(model),
        _observing(layers, inputs, products),
    ):
        for number, (batch, size) in enumerate(limited(own, max_samples, run)):
            if size:
                run_batch(run, model, batch, f"the analog model failed on calibration batch {number}")
                n_samples += size
    if n_samples == 0:
        raise CalibrationError("the calibration set is empty: no batch with a sample came out of it")
    ranges = {}
    for name, layer in layers.items():
        seen = inputs[name]
        if seen.maximum == 0.0:  # never called, or by zeros only: nothing to go by
            continue
        of_tiles = products.get(name, [])
        ranges[name] = least_error_range(seen, layer, of_tiles) if quantile is None else seen.quantile(quantile)
    for name, value in ranges.items():
        set_input_range(layers[name], value)
        if name in products and own_bounds(tiles_of(layers[name])[0]) is not None:
            set_output_bounds(layers[name], least_error_bounds(value, layers[name], products[name]))
    _warn_of_unset_bounds({name: layers[name] for name in ranges if name not in products})
    return ranges


def _warn_of_unset_bounds(layers: Mapping[str, nn.Module]) -> None:
    """Tell of ADCs that were to get ranges from images, in layers whose products cannot be seen."""
    names = [name for name, layer in layers.items() if own_bounds(tiles_of(layer)[0]) is not None]
    if names:
        warnings.warn(
            f"the ADCs of {len(names)} layers ({some(names)}) keep the range of the settings: output_range acts "
            "on layers that convert_to_noise_aware made",
            stacklevel=4,
        )


def _has_bounded_adc(layer: nn.Module) -> bool:
    io = tiles_of(layer)[0].rpu_config.forward
    return (
        isinstance(layer, NoiseAwareLayer)
        and is_plain_torch(layer.analog_module)
        and not io.is_perfect
        and io.out_bound > 0
    )


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
def _observing(
    layers: dict[str, nn.Module], inputs: dict[str, AbsHistogram], products: dict[str, list[LogHistogram]]
) -> Iterator[None]:
    def add(name: str, x: Tensor, linear_map: LinearMap | None) -> None:
        inputs[name].add(x)
        if name not in products or linear_map is None or x.numel() == 0:
            return
        array: Any = layers[name].analog_module
        of_tiles = iter(zip(products[name], reads_of(layers[name]), strict=True))
        for row in tile_rows(array):
            product = row_product(x, row, linear_map).movedim(linear_map.channel_dim, 0)
            for part in product.split(array.out_sizes):
                histogram, reads = next(of_tiles)
                one = len(histogram.counts) == 1
                histogram.add(part.unsqueeze(0) if one else part, reads[:1] if one else reads)

    def observe(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        x = first_argument(args, kwargs)
        if isinstance(x, Tensor):
            add(name, x, getattr(layers[name], "linear_map", None))

    own = {name: layer for name, layer in layers.items() if isinstance(layer, NoiseAwareOwnForward)}
    others = {name: layer for name, layer in layers.items() if name not in own}
    with (
        watched(others, observe),
        watched_products(own, lambda name, call, product: add(name, call.input, call.linear_map)),
    ):
        yield
