"""What a calibration method works with: the chip, the reference, the batches, and the places it may change."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from aihwkit_nabn.calibration.batches import (
    ForwardFn,
    SampleStore,
    batch_size,
    first_samples,
    limited,
    run_batch,
    separate,
)
from aihwkit_nabn.calibration.batchnorms import StatisticsRule, measure_batchnorms
from aihwkit_nabn.calibration.moments import Moments
from aihwkit_nabn.calibration.rehearsal import Rehearsal, rehearse
from aihwkit_nabn.calibration.report import CorrectionCost, LayerShift
from aihwkit_nabn.chip.moment import ChipMoment
from aihwkit_nabn.errors import CalibrationError, VerificationError, suggestion
from aihwkit_nabn.nn.alignment import OutputAlignment
from aihwkit_nabn.nn.batchnorm import NoiseAwareBatchNorm
from aihwkit_nabn.nn.calibration_state import alignments, batchnorms
from aihwkit_nabn.nn.calls import watched
from aihwkit_nabn.nn.keeping import copied
from aihwkit_nabn.nn.layers import NoiseAwareLayer, named_analog_layers
from aihwkit_nabn.nn.own_forward import watched_outputs
from aihwkit_nabn.nn.verification import verify

# Samples that a chip is verified on.
_VERIFIED = 2
# How the passes of each model may be run, with which function.
REHEARSED: WeakKeyDictionary[nn.Module, tuple[ForwardFn, Rehearsal]] = WeakKeyDictionary()


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
        notes: What a method has to say beside its numbers, for report and tables; likewise.
        taken: Name of the method that was chosen, by one that chooses; likewise.
        corrections: What corrections of layers cost; likewise.
        losses: What was tuned, before and after; likewise.
        n_samples: Samples seen so far, those of the batch at hand included.
        n_batches: Batches seen so far, the one at hand included.
        n_passes: How often the chip has begun on the batches.
        batch_sizes: Samples in each of the batches seen so far.
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
        self.notes: list[str] = []
        self.taken = ""
        self.corrections: CorrectionCost | None = None
        self.losses: tuple[float, float] | None = None
        self.n_samples = self.n_batches = self.n_passes = 0
        self.batch_sizes: list[int] = []
        self._kept: list[Any] | None = None
        self._numbers: Sequence[int] | None = None
        self._waiting: deque[tuple[Any, int]] = deque()
        self._source: Iterator[tuple[Any, int]] | None = None
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
        while self._look_ahead():
            batch, size = self._waiting.popleft()
            self.n_samples += size
            self.n_batches += 1
            self.batch_sizes.append(size)
            yield batch
            if self._on_batch is not None:
                self._on_batch(size)
        if self.n_samples == 0:
            raise CalibrationError("the calibration set is empty: no batch with a sample came out of it")

    def _look_ahead(self) -> bool:
        """Have the next batch that holds a sample waiting; False if there is none."""
        if self._source is None:
            batches = () if self._batches is None else self._batches
            self._source = limited(batches, self._max_samples, self._forward_fn)
        while not self._waiting:
            found = next(self._source, None)
            if found is None:
                return False
            if found[1]:
                parts = separate(self._forward_fn, self.model, found[0])
                self._waiting += [found] if len(parts) == 1 else [(part, batch_size(part)) for part in parts]
        return True

    def part(self, batches: Iterable[Any], numbers: Sequence[int] | None = None) -> CalibrationSession:
        """Return a session of the same chip and reference with some of the samples; what it notes is its own.

        `numbers` says which of this session's batches they are, for messages; None: cut anew.
        """
        model, reference, forward_fn = self.model, self.reference, self._forward_fn
        part = CalibrationSession(
            model, reference, batches, forward_fn, None, None, self._on_step, self._reference_forward_fn
        )
        part._numbers = numbers
        return part

    def verify(self, reference: nn.Module, *, strict: bool) -> None:
        """Hold the chip, noise left out, against the digital model on the first samples, see `nn.verification`."""
        if not self._look_ahead():
            return
        batch, size = self._waiting[0]
        try:
            self._verify_on(reference, first_samples(batch, _VERIFIED, size), min(size, _VERIFIED), strict)
        except VerificationError:
            raise
        except CalibrationError:  # a forward_fn that takes whole batches only
            self._verify_on(reference, batch, size, strict)

    def rehearsal(self) -> Rehearsal:
        """Return how passes of the chip may be run, tried on few samples of two batches; once per model."""
        known = REHEARSED.get(self.model)
        if known is not None and known[0] is self._forward_fn:
            return known[1]
        pairs = list(zip(self.all_batches(), self.batch_sizes, strict=True))[:2]
        order = {name: number for number, (name, _) in enumerate(self.model.named_modules())}
        trimmed = [first_samples(batch, n, size) for n, (batch, size) in zip((3, 2), pairs, strict=True)]
        found = Rehearsal()
        for batches in (trimmed, [batch for batch, _ in pairs]):  # some functions take whole batches only
            try:
                found = rehearse(self.model, [functools.partial(self._on_copy, batch) for batch in batches], order)
                break
            except Exception:  # to be told of, with the batch's number, when it counts
                continue
        REHEARSED[self.model] = self._forward_fn, found
        return found

    def _on_copy(self, batch: Any) -> Any:
        return self._forward_fn(self.model, copied(batch))

    def _verify_on(self, reference: nn.Module, batch: Any, size: int, strict: bool) -> None:
        def run(model: nn.Module) -> Any:
            role = "analog model" if model is self.model else "reference"
            return self._run(self._forward_fn, model, role, batch, 0)

        moment = ChipMoment.take(self.model)
        try:
            verify(reference, self.model, run, f"{size} calibration samples", strict=strict)
        finally:
            moment.restore()

    def all_batches(self) -> list[Any]:
        """Return the calibration batches, all at once, as often as wanted.

        Raises:
            CalibrationError: as `batches`.
        """
        if self._kept is None:
            self._kept = list(self.batches())
        return self._kept

    def samples(self) -> SampleStore:
        """Return the calibration samples to draw from: one by one where the reference takes them so."""
        store = SampleStore(self.all_batches())
        if not store.by_sample or store.n == 1:
            return store
        try:
            self.run_reference(store.take([0]), 0)
        except CalibrationError:  # a function that takes whole batches only
            return SampleStore(self.all_batches(), whole=True)
        return store

    def step_done(self, step: int, total: int) -> None:
        """Move the progress bar of a method that goes on after the batches; steps count from 1."""
        if self._on_step is not None:
            self._on_step(step, total)

    @property
    def has_batches(self) -> bool:
        """Whether there is a calibration set."""
        return self._batches is not None

    def run_analog(self, batch: Any, number: int | None = None) -> Any:
        """Return the analog model's output for a batch, with whatever is calibrated or observed so far.

        `number` says which batch it is, for messages; default: the last that was read.
        """
        return self._run(self._forward_fn, self.model, "analog model", batch, number)

    def run_reference(self, batch: Any, number: int | None = None) -> Any:
        """Return the reference's output for a batch; arguments as for the chip."""
        with torch.no_grad():
            return self._run(self._reference_forward_fn, self.digital_model(), "reference", batch, number)

    def _run(self, forward_fn: ForwardFn, model: nn.Module, role: str, batch: Any, number: int | None) -> Any:
        place = self.n_batches - 1 if number is None else number
        place = place if self._numbers is None else self._numbers[place]
        return run_batch(forward_fn, model, copied(batch), f"the {role} failed on calibration batch {place}")

    def reference_layers(self) -> dict[str, nn.Module]:
        """Return the reference's layers by the names of the analog ones.

        Raises:
            CalibrationError: a layer is missing or has another shape.
        """
        return match_reference(self.model, self.digital_model())

    def digital_model(self) -> nn.Module:
        """Return the reference.

        Raises:
            CalibrationError: there is none.
        """
        if self.reference is None:
            raise CalibrationError("this method compares with the digital model; pass reference=model")
        return self.reference

    def recording(
        self, modules: dict[str, nn.Module], record: Callable[[str, Any], None]
    ) -> AbstractContextManager[None]:
        """Call ``record(name, output)`` for every output of the given modules inside the block."""
        return watched(modules, lambda name, args, kwargs, output: record(name, output))

    def recording_products(
        self, layers: dict[str, nn.Module], record: Callable[[str, Any], None]
    ) -> AbstractContextManager[None]:
        """Call ``record(name, output)`` for every output of the reference's layers, see `watched_outputs`."""
        return watched_outputs(named_analog_layers(self.model), layers, record)

    def measure_batchnorms(self, rule: StatisticsRule) -> dict[str, Moments]:
        """Give every BatchNorm what `rule` makes of its input's moments on the chip, see `batchnorms`."""
        return measure_batchnorms(self, rule)


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
        array: Any = layer.analog_module
        expected, got = (array.out_size, array.in_size), _matrix_shape_of(layer, weight)
        if got != expected:
            raise CalibrationError(f"reference layer {name!r} has a {got} weight matrix, the chip's is {expected}")
        matched[name] = twin
    return matched


def _matrix_shape_of(layer: Any, weight: Tensor) -> tuple[int, ...]:
    """Shape of the matrix that a digital weight makes on the layer's tiles; aihwkit's own layers flatten it."""
    if isinstance(layer, NoiseAwareLayer):
        try:
            return layer.matrix_shape_of(weight)
        except RuntimeError:  # a weight that this kind of layer cannot have
            return tuple(weight.shape)
    return weight.shape[0], weight[0].numel()
