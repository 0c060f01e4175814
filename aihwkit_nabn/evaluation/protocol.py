"""The protocol: how a network is put on chips, calibrated and measured, the same for whoever asks and in any order."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.calibration import CalibrationMethod, calibrate
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.calibration.report import CalibrationReport, LayerShift
from aihwkit_nabn.chip import program_chip, set_read_noise_seed
from aihwkit_nabn.chip.variation import set_samples_processed
from aihwkit_nabn.errors import VerificationError
from aihwkit_nabn.evaluation.first_call import FirstCall
from aihwkit_nabn.evaluation.plan import EvalFn, PlannedMethod, check_metrics
from aihwkit_nabn.evaluation.scenario import Scenario, config_key
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.input_ranges import ranged_layers
from aihwkit_nabn.nn.keeping import kept
from aihwkit_nabn.nn.verification import verify
from aihwkit_nabn.results import UNVERIFIED, Record
from aihwkit_nabn.results.placement import Exclude, excluded_names
from aihwkit_nabn.seeding import derive_seed, isolated_rng, private_rng


class EvaluationProtocol:
    """One network under one set of conditions: it is converted, its chips are programmed, calibrated and measured.

    Every seed of a measurement is derived here, so a chip and a method give the same number in `evaluate`, in
    `AnalogHook`, along a stream, and in every study.

    Args:
        model: The digital model, in eval mode.
        eval_fn: As `evaluate` takes it; None where nothing is measured here.
        seed: Of the run: it orders the calibration images.
        forward_fn: As `evaluate` takes it, and so are the next three.
        reference_forward_fn: For the digital model.
        max_samples: Calibrate with at most this many samples.
        exclude: Names of modules that stay digital.
        range_batches: What static input ranges are set from.
        on_digital: Called with the digital model's metrics when they are measured.

    Attributes:
        digital: The digital model's metrics; empty before they are known.
    """

    def __init__(
        self,
        model: nn.Module,
        eval_fn: EvalFn | None = None,
        *,
        seed: int = 0,
        forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        reference_forward_fn: Callable[[nn.Module, Any], Any] | None = None,
        max_samples: int | None = None,
        exclude: Exclude = (),
        range_batches: Iterable[Any] | None = None,
        on_digital: Callable[[dict[str, float]], object] | None = None,
    ) -> None:
        self.model, self.seed, self.eval_fn = model, seed, eval_fn
        self.forward_fn, self.reference_forward_fn = forward_fn, reference_forward_fn
        self.max_samples, self.exclude, self.range_batches = max_samples, excluded_names(exclude), range_batches
        self.on_digital = on_digital
        self.digital: dict[str, float] = {}
        self._analog: dict[bytes, nn.Module] = {}
        self._first_call: FirstCall | None = None

    def analog(self, rpu_config: Any) -> nn.Module:
        """Return the network's conversion: input ranges set, verified, the digital model measured before.

        It is made once per configuration, and kept until `release`.

        Raises:
            NabnError: it cannot be converted.
            VerificationError: it does not compute what the digital model computes.
        """
        key = config_key(rpu_config)
        if key not in self._analog:
            analog = self.convert(rpu_config)
            self.measure_digital()  # after the first conversion: what cannot be converted should cost no evaluation
            self._verify(analog, self._inputs())
            self._analog[key] = analog
        return self._analog[key]

    def convert(self, rpu_config: Any) -> nn.Module:
        """Return a conversion with its input ranges, not verified, which nobody else has."""
        analog = convert_to_noise_aware(self.model, rpu_config, exclude=self.exclude)
        self.set_input_ranges(analog, self.range_batches)
        return analog

    def keep_only(self, rpu_config: Any) -> None:
        """Let go of all conversions but that of one configuration."""
        key = config_key(rpu_config)
        self._analog = {known: analog for known, analog in self._analog.items() if known == key}

    def release(self, rpu_config: Any) -> None:
        """Let go of a conversion: a large model per noise setting would fill the memory."""
        self._analog.pop(config_key(rpu_config), None)

    def measure_digital(self) -> dict[str, float]:
        """Return the digital model's metrics, measured at the first call."""
        if not self.digital:
            with FirstCall(self.model) as self._first_call:
                self.digital = self.measure(self.model, self.seed, place="for the digital model")
            if self.on_digital is not None:
                self.on_digital(self.digital)
        return self.digital

    def _inputs(self) -> FirstCall:
        """Return what the model is first called with, asking again where it was measured in an earlier run."""
        if self._first_call is None:
            with FirstCall(self.model, stop=True) as self._first_call:
                self.measure(self.model, self.seed, place="for the digital model")
        return self._first_call

    def _verify(self, analog: Any, first_call: FirstCall) -> None:
        """Hold a conversion against the digital model, on what the model was first called with while it was measured.

        Where there is nothing to run both on, the conversion's report says so.
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

    def set_input_ranges(self, analog: nn.Module, batches: Any) -> dict[str, float]:
        """Give the tiles static input ranges, where the settings ask for them: once, for all chips and methods.

        Returns:
            What `calibrate_input_ranges` returns; empty where no range is asked for.
        """
        if not ranged_layers(analog):
            return {}
        if batches is None:
            warnings.warn("without calibration_batches, static input ranges stay at their initial value", stacklevel=2)
            return {}
        with self._same_images(batches):
            return calibrate_input_ranges(analog, batches, forward_fn=self.forward_fn, max_samples=self.max_samples)

    def program(self, analog: nn.Module, scenario: Scenario, chip_seed: int) -> None:
        """Program a chip of a scenario."""
        program_chip(analog, chip_seed, float(scenario.t_inference))

    def calibrate(self, analog: nn.Module, chip_seed: int, method: PlannedMethod) -> CalibrationReport:
        """Calibrate a programmed chip, its read noise starting where it starts for every method."""
        return self.calibrate_with(
            analog, chip_seed, method.spec.method, method.batches, method.needs_reference, **method.spec.options
        )

    def calibrate_with(
        self,
        analog: nn.Module,
        chip_seed: int,
        method: str | CalibrationMethod,
        batches: Iterable[Any] | None,
        needs_reference: bool = True,
        *,
        at_sample: int = 0,
        **options: Any,
    ) -> CalibrationReport:
        """Do the same with a method by name, or with one that is built already.

        Where noise moves with the samples, the chip stands behind its first `at_sample` ones.
        """
        set_read_noise_seed(analog, derive_seed(chip_seed, "evaluate"))
        set_samples_processed(analog, at_sample)
        with self._same_images(batches):
            return calibrate(
                analog,
                batches,
                method=method,
                reference=self.model if needs_reference else None,
                forward_fn=self.forward_fn,
                reference_forward_fn=self.reference_forward_fn,
                max_samples=self.max_samples,
                progress=False,
                **options,
            )

    def measure(
        self, model: nn.Module, seed: int, *, place: str, expected: Iterable[str] | None = None
    ) -> dict[str, float]:
        """Return the metrics of the digital model, or of a chip, whose read noise follows from ``seed``."""
        if model is not self.model:
            set_read_noise_seed(model, derive_seed(seed, "evaluate"))
        assert self.eval_fn is not None, "a protocol without eval_fn measures nothing"
        # What the model keeps of its inputs must not tell the chips' runs from one another.
        digital = kept(model) if model is self.model else nullcontext()
        with isolated_rng(derive_seed(seed, "evaluate")), torch.no_grad(), digital:
            return check_metrics(self.eval_fn(model), place=place, expected=expected)

    def record(
        self, analog: nn.Module, scenario: Scenario, chip_seed: int, method: PlannedMethod
    ) -> tuple[Record, list[LayerShift] | None]:
        """Try a method on a programmed chip, and undo it.

        Returns:
            The measurement, and what calibrating changed, layer by layer; None where nothing was calibrated.
        """
        place = f"in scenario {scenario.name!r}, chip {chip_seed}, method {method.label!r}"
        started = time.perf_counter()
        report: CalibrationReport | None = None
        with evaluation_mode(analog):
            if method.calibrates:
                report = self.calibrate(analog, chip_seed, method)
            calibrated = time.perf_counter()
            try:
                metrics = self.measure(analog, chip_seed, place=place, expected=self.measure_digital())
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
