"""What a calibration method works with: the chip, the reference, the batches, and the places it may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import ForwardFn, describe, limited
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.chip.calibration_state import alignments, batchnorms
from aihwkit_nabn.errors import CalibrationError, NabnError, suggestion
from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm, Statistics
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.own_forward import NoiseAwareOwnForward, watched_products

BatchNormRule = Callable[[NoiseAwareBatchNorm, Moments, Moments], Statistics]


class CalibrationSession:
    """One run of one method on one chip.

    Attributes:
        model: The analog model, in eval mode.
        reference: The digital model in eval mode, or None where the method needs none.
        alignments: Output alignment of every analog layer, by name.
        batchnorms: Noise-aware BatchNorm layers, by name.
        devices: Device of every analog layer.
        dtypes: Data type of every analog layer.
        layers: Shifts for the report; methods fill it.
        n_samples: Samples seen so far, those of the batch at hand included.
        n_batches: Batches seen so far, the one at hand included.
        keep_batches: Whether `batches` puts every batch into `kept`, for methods that need them again.
        kept: The batches kept.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        batches: Iterable[Any] | None,
        forward_fn: ForwardFn,
        max_samples: int | None,
        on_batch: Callable[[int], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        reference_forward_fn: ForwardFn | None = None,
    ) -> None:
        self.model = model
        self.reference = reference
        self.alignments: dict[str, OutputAlignment] = alignments(model)
        self.batchnorms: dict[str, NoiseAwareBatchNorm] = batchnorms(model)
        tiles = {name: next(layer.analog_tiles()) for name, layer in named_analog_layers(model).items()}  # type: ignore[operator]
        self.devices: dict[str, torch.device] = {name: tile.device for name, tile in tiles.items()}
        self.dtypes: dict[str, torch.dtype] = {name: tile.get_dtype() for name, tile in tiles.items()}
        self.layers: list[LayerShift] = []
        self.n_samples = 0
        self.n_batches = 0
        self.keep_batches = False
        self.kept: list[Any] = []
        self._batches = batches
        self._forward_fn = forward_fn
        self._reference_forward_fn = reference_forward_fn or forward_fn
        self._max_samples = max_samples
        self._on_batch = on_batch
        self._on_step = on_step

    def batches(self) -> Iterator[Any]:
        """Yield the calibration batches, once; counts samples and moves the progress bar.

        Raises:
            CalibrationError: there is none, a batch is not finite, or the loader fails.
        """
        if self._batches is None:
            raise CalibrationError("this method needs calibration batches, got None")
        for batch, size in limited(self._batches, self._max_samples, self._forward_fn):
            if size == 0:
                continue
            self.n_samples += size
            self.n_batches += 1
            if self.keep_batches:
                self.kept.append(batch)
            yield batch
            if self._on_batch is not None:
                self._on_batch(size)
        if self.n_samples == 0:
            raise CalibrationError("the calibration set is empty: no batch with a sample came out of it")

    def step_done(self, step: int, total: int) -> None:
        """Move the progress bar of a method that goes on after the batches; steps count from 1."""
        if self._on_step is not None:
            self._on_step(step, total)

    @property
    def has_batches(self) -> bool:
        """Whether there is a calibration set."""
        return self._batches is not None

    def run_analog(self, batch: Any) -> Any:
        """Return the analog model's output for a batch, with whatever is calibrated or observed so far."""
        return self._run(self._forward_fn, self.model, "analog model", batch)

    def run_reference(self, batch: Any) -> Any:
        """Return the reference's output for a batch."""
        if self.reference is None:
            raise CalibrationError("this method compares with the digital model; pass reference=model")
        with torch.no_grad():
            return self._run(self._reference_forward_fn, self.reference, "reference", batch)

    def _run(self, forward_fn: ForwardFn, model: nn.Module, role: str, batch: Any) -> Any:
        try:
            return forward_fn(model, batch)
        except NabnError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"the {role} failed on calibration batch {self.n_batches - 1} ({describe(batch)}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def reference_layers(self) -> dict[str, nn.Module]:
        """Return the reference's layers by the names of the analog ones.

        Raises:
            CalibrationError: a layer is missing or has another shape.
        """
        if self.reference is None:
            raise CalibrationError("this method compares with the digital model; pass reference=model")
        return match_reference(self.model, self.reference)

    @contextmanager
    def recording(self, modules: dict[str, nn.Module], record: Callable[[str, Any], None]) -> Iterator[None]:
        """Call ``record(name, output)`` for every output of the given modules inside the block."""
        with watched(modules, lambda name, args, kwargs, output: record(name, output)):
            yield

    @contextmanager
    def recording_products(self, layers: dict[str, nn.Module], record: Callable[[str, Any], None]) -> Iterator[None]:
        """Call ``record(name, output)`` for every output of layers of the reference, as the chip's alignments see it.

        That is the output of the operation on tiles, where a layer's forward pass goes on from there.
        """
        analog = named_analog_layers(self.model)
        own = {name: layer for name, layer in analog.items() if isinstance(layer, NoiseAwareOwnForward)}
        others = {name: layer for name, layer in layers.items() if name not in own}
        with (
            self.recording(others, record),
            watched_products(own, lambda name, x, product: record(name, product), layers),
        ):
            yield

    @torch.no_grad()
    def observe_batchnorms(self, rule: BatchNormRule) -> dict[str, Moments]:
        """Run the chip over the batches, each BatchNorm normalising with what `rule` makes of its input so far.

        Args:
            rule: Called as ``rule(layer, moments so far, moments of this call)``; returns mean and variance
                ``[channels]``.

        Returns:
            Population moments of each BatchNorm's input.

        Raises:
            CalibrationError: the model has no BatchNorm, or one of them saw nothing or NaN.
        """
        if not self.batchnorms:
            raise CalibrationError(
                "the model has no BatchNorm with trained statistics to calibrate; use method='paired', which needs none"
            )
        gathered = {
            name: Moments.empty(bn.num_features, bn.trained_statistics()[0].device)
            for name, bn in self.batchnorms.items()
        }
        try:
            for name, bn in self.batchnorms.items():
                bn.observer = _batchnorm_observer(name, gathered[name], rule)
            for batch in self.batches():
                self.run_analog(batch)
        finally:
            for bn in self.batchnorms.values():
                bn.observer = None
        unseen = [name for name, moments in gathered.items() if moments.count == 0]
        for name in unseen:  # a branch that eval mode does not take (an auxiliary head) keeps its trained statistics
            del gathered[name]
        if not gathered:
            raise CalibrationError("no BatchNorm layer ran on the calibration set")
        return gathered

    def set_batchnorms(self, gathered: dict[str, Moments], rule: BatchNormRule) -> None:
        """Give each BatchNorm the statistics `rule` makes of its population moments, and note the shifts."""
        for name, moments in gathered.items():
            bn = self.batchnorms[name]
            mean, var = rule(bn, moments, moments)
            trained = _as_moments(*bn.trained_statistics(), moments.count)
            bn.set_calibrated(mean, var)
            self.layers.append(
                LayerShift.between(name, "BatchNorm", moments, trained, moments, _as_moments(mean, var, moments.count))
            )


def _batchnorm_observer(name: str, total: Moments, rule: BatchNormRule) -> Callable[..., Statistics]:
    def observe(x: Tensor, bn: NoiseAwareBatchNorm) -> Statistics:
        now = Moments.of(x, 1)
        now.check_finite(f"the input of BatchNorm {name!r}")
        total.merge(now)
        mean, var = rule(bn, total, now) if now.count else bn.trained_statistics()
        like = bn.trained_statistics()[0]
        return mean.to(like), var.to(like)

    return observe


def _as_moments(mean: Tensor, var: Tensor, count: int) -> Moments:
    return Moments(count, mean.double(), var.double() * count)


def match_reference(model: nn.Module, reference: nn.Module) -> dict[str, nn.Module]:
    """Return the reference's module for each analog layer of `model`, by name.

    Raises:
        CalibrationError: one is missing, is analog itself, or has weights of another shape.
    """
    by_name = dict(reference.named_modules())
    if named_analog_layers(reference):
        raise CalibrationError("reference must be the digital model, but it has analog layers itself")
    matched = {}
    for name, layer in named_analog_layers(model).items():
        twin = by_name.get(name)
        if twin is None:
            near = suggestion(name, by_name)
            raise CalibrationError(f"reference has no layer {name!r}{near}; is it the same network?")
        weight = getattr(twin, "weight", None)
        if not isinstance(weight, Tensor):
            raise CalibrationError(f"reference layer {name!r} is a {type(twin).__name__} without weights")
        expected, got = _matrix_shape(layer), _matrix_shape_of(layer, weight)
        if got != expected:
            raise CalibrationError(f"reference layer {name!r} has a {got} weight matrix, the chip's is {expected}")
        matched[name] = twin
    return matched


def _matrix_shape(layer: Any) -> tuple[int, int]:
    return layer.analog_module.out_size, layer.analog_module.in_size


def _matrix_shape_of(layer: Any, weight: Tensor) -> tuple[int, ...]:
    """Shape of the matrix that a digital weight makes on the layer's tiles; aihwkit's own layers flatten it."""
    if isinstance(layer, NoiseAwareLayer):
        try:
            return layer.matrix_shape_of(weight)
        except RuntimeError:  # a weight that this kind of layer cannot have
            return tuple(weight.shape)
    return weight.shape[0], weight[0].numel()
