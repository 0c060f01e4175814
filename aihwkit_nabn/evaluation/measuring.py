"""Calibrating and measuring alike: the same images and the same random streams whoever asks, and in whatever order."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.calibration import calibrate
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.calibration.report import CalibrationReport, LayerShift
from aihwkit_nabn.chip import set_read_noise_seed
from aihwkit_nabn.errors import VerificationError
from aihwkit_nabn.evaluation.first_call import FirstCall
from aihwkit_nabn.evaluation.plan import EvalFn, PlannedMethod, check_metrics
from aihwkit_nabn.evaluation.scenario import Scenario
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.input_ranges import ranged_layers
from aihwkit_nabn.nn.keeping import kept
from aihwkit_nabn.nn.verification import verify
from aihwkit_nabn.results import UNVERIFIED, Record
from aihwkit_nabn.seeding import derive_seed, isolated_rng, private_rng


@dataclass(frozen=True)
class Measuring:
    """How one run calibrates and measures: every chip and every method under the same conditions."""

    model: nn.Module
    """The digital model."""
    seed: int
    """Of the run: it orders the calibration images."""
    eval_fn: EvalFn
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None
    max_samples: int | None = None

    def verify(self, analog: Any, first_call: FirstCall) -> None:
        """Hold a conversion against the digital model, on what the model was first called with while it was measured.

        Where there is nothing to run both on, the conversion's report says so.

        Raises:
            VerificationError: the two do not compute the same.
        """
        if first_call.arguments is None:
            reason = "eval_fn does not call the model itself, so there was nothing to run both models on"
            analog.conversion_report.verified = f"{UNVERIFIED}{reason}"
            return
        with evaluation_mode(self.model, analog):
            try:
                self._verify_on(analog, first_call.arguments, first_call.described)
            except VerificationError:
                raise
            except Exception:  # a model that takes whole batches only
                self._verify_on(analog, first_call.whole, "the first test batch")

    def _verify_on(self, analog: Any, arguments: Any, described: str) -> None:
        def run(model: Any) -> Any:
            args, kwargs = copy.deepcopy(arguments)
            return model(*args, **kwargs)

        verify(self.model, analog, run, described)

    def set_input_ranges(self, analog: nn.Module, batches: Any) -> None:
        """Give the tiles static input ranges, where the settings ask for them: once, for all chips and methods."""
        if not ranged_layers(analog):
            return
        if batches is None:
            warnings.warn("without calibration_batches, static input ranges stay at their initial value", stacklevel=2)
            return
        with self._same_images(batches):
            calibrate_input_ranges(analog, batches, forward_fn=self.forward_fn, max_samples=self.max_samples)

    def calibrate(self, analog: nn.Module, chip_seed: int, method: PlannedMethod) -> CalibrationReport:
        """Calibrate a programmed chip, its read noise starting where it starts for every method."""
        set_read_noise_seed(analog, derive_seed(chip_seed, "evaluate"))
        with self._same_images(method.batches):
            return calibrate(
                analog,
                method.batches,
                method=method.spec.method,
                reference=self.model if method.needs_reference else None,
                forward_fn=self.forward_fn,
                reference_forward_fn=self.reference_forward_fn,
                max_samples=self.max_samples,
                progress=False,
                **method.spec.options,
            )

    def measure(
        self, model: nn.Module, seed: int, *, place: str, expected: Iterable[str] | None = None
    ) -> dict[str, float]:
        """Return the metrics of the digital model, or of a chip, whose read noise follows from ``seed``."""
        if model is not self.model:
            set_read_noise_seed(model, derive_seed(seed, "evaluate"))
        # What the model keeps of its inputs must not tell the chips' runs from one another.
        digital = kept(model) if model is self.model else nullcontext()
        with isolated_rng(derive_seed(seed, "evaluate")), torch.no_grad(), digital:
            return check_metrics(self.eval_fn(model), place=place, expected=expected)

    def record(
        self, analog: nn.Module, scenario: Scenario, chip_seed: int, method: PlannedMethod, *, place: str, expected: Any
    ) -> tuple[Record, list[LayerShift] | None]:
        """Try a method on a programmed chip, and undo it.

        Returns:
            The measurement, and what calibrating changed, layer by layer; None where nothing was calibrated.
        """
        started = time.perf_counter()
        report: CalibrationReport | None = None
        with evaluation_mode(analog):
            if method.calibrates:
                report = self.calibrate(analog, chip_seed, method)
            calibrated = time.perf_counter()
            try:
                metrics = self.measure(analog, chip_seed, place=place, expected=expected)
            finally:
                evaluated = time.perf_counter()
                if report is not None:
                    report.undo()
        record = Record(
            scenario=scenario.name,
            group=scenario.group,
            strength=scenario.strength,
            t_inference=float(scenario.t_inference),
            method=method.label,
            method_name=method.spec.method,
            chip_seed=chip_seed,
            metrics=metrics,
            seconds_calibration=0.0 if report is None else calibrated - started,
            seconds_evaluation=evaluated - calibrated,
            n_calibration_samples=0 if report is None else int(report.n_samples),
            note="" if report is None else "; ".join(report.notes),
        )
        return record, None if report is None else report.layers

    @contextmanager
    def _same_images(self, batches: object) -> Iterator[None]:
        # Seeded by the run, not by the chip: a shuffling loader gives every chip and every method the same images.
        seed = derive_seed(self.seed, "calibration")
        with isolated_rng(seed), private_rng(seed), _loader_restored(batches):
            yield


@contextmanager
def _loader_restored(batches: object) -> Iterator[None]:
    """Let a DataLoader that shuffles with a generator of its own give the same order again the next time."""
    holders = (batches, getattr(batches, "sampler", None))
    found = (getattr(holder, "generator", None) for holder in holders)
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
