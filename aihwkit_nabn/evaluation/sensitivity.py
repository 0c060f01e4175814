"""Which layers hurt most: one layer at a time on the chip, the others digital, and the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from aihwkit_nabn.calibration.session import match_reference
from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.evaluation.first_call import FirstCall
from aihwkit_nabn.evaluation.measuring import Measuring
from aihwkit_nabn.evaluation.methods import MethodSpec
from aihwkit_nabn.evaluation.plan import CalibrationBatches, EvalFn, Plan, PlannedMethod, make_plan
from aihwkit_nabn.evaluation.scenario import Scenario
from aihwkit_nabn.evaluation.settings import describe
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.nn.evaluation_mode import evaluation_mode
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.nn.reparametrization import copy_model
from aihwkit_nabn.nn.rewiring import replace_held
from aihwkit_nabn.results import UNCALIBRATED, Record, Results
from aihwkit_nabn.results.layers import BUT, ONLY, SHARES, WHOLE
from aihwkit_nabn.results.version_0_1 import value_in
from aihwkit_nabn.seeding import derive_seed, isolated_rng

_PLACE = "when measuring sensitivity"


def measure_sensitivity(
    model: nn.Module,
    *,
    scenarios: Iterable[Scenario],
    eval_fn: EvalFn,
    methods: Iterable[MethodSpec | str] = (UNCALIBRATED, "paired"),
    chips: int = 5,
    seed: int = 0,
    calibration_batches: CalibrationBatches | None = None,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    max_samples: int | None = None,
    exclude: Iterable[str] = (),
    reverse: bool = False,
    known: Iterable[Record] = (),
    on_record: Callable[[Record, int, int], None] | None = None,
) -> Results:
    """Measure what each layer costs on its own: only that layer on the chip, all others digital.

    The model is converted once and each chip programmed once; then the digital layers are put back in place of all but
    one, so a layer has the very weights that it has on the whole chip, with every layer the same chips.

    Args:
        model: The digital model as trained; not changed.
        scenarios: As `evaluate` takes them.
        eval_fn: As `evaluate` takes it. The first metric is the one that losses are of.
        methods: What is tried on each layer; ``"none"`` is always among them. With one layer on the chip ``"paired"``
            calibrates that layer.
        chips: Number of chips, >= 1.
        seed: Chip ``i`` is programmed with ``seed + i``.
        calibration_batches: As `evaluate` takes them.
        forward_fn: As `evaluate` takes it.
        max_samples: Calibrate with at most this many samples; default: all.
        exclude: Names of modules that stay digital throughout.
        reverse: Measure also the other way round: all layers but one on the chip.
        known: Records measured before, with the same arguments: they are taken over instead of being measured again.
        on_record: Called with every record as soon as it is there, its number and how many there are in all.

    Returns:
        One record per scenario, layer, method and chip, see `aihwkit_nabn.results.layers`; each layer's share of the
        weights is among the settings.

    Raises:
        NabnError: an argument that cannot work, found before anything is run.
    """
    plan = make_plan(
        model=model,
        scenarios=scenarios,
        methods=methods,
        chips=chips,
        seed=seed,
        calibration_batches=calibration_batches,
        functions={"eval_fn": eval_fn, "forward_fn": forward_fn, "on_record": on_record},
        max_samples=max_samples,
    )
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    settings = describe(model, plan, max_samples=max_samples, exclude=exclude)
    measuring = Measuring(model, seed, eval_fn, forward_fn, max_samples=max_samples)
    study = _Study(plan, measuring, {_place(record): record for record in known})
    with isolated_rng(derive_seed(seed, "run")), evaluation_mode(model):
        for record in study.records(exclude, reverse=reverse):
            if on_record is not None:
                on_record(record, len(study.done), study.total)
    digital = {study.metric: study.digital[study.metric]}
    return Results(records=study.done, digital=digital, settings={**settings, SHARES: study.shares})


def _place(record: Record) -> tuple[Any, ...]:
    return record.scenario, record.axis("layer"), record.axis("on_chip"), record.method, record.chip_seed


class _Study:
    """One measurement under way."""

    def __init__(self, plan: Plan, measuring: Measuring, known: Mapping[tuple[Any, ...], Record]) -> None:
        self.plan, self.measuring, self.known = plan, measuring, known
        self.done: list[Record] = []
        self.shares: dict[str, float] = {}
        self.digital: dict[str, float] = {}
        self.total = 0

    @property
    def metric(self) -> str:
        return next(iter(self.digital))

    def records(self, exclude: tuple[str, ...], *, reverse: bool) -> Iterator[Record]:
        model = self.measuring.model
        for scenario in self.plan.scenarios:
            analog = convert_to_noise_aware(model, scenario.rpu_config, exclude=exclude)
            if not self.digital:  # after the first conversion: what cannot be converted should not cost a measurement
                with FirstCall(model) as first_call:
                    self.digital = self.measuring.measure(model, self.measuring.seed, place=_PLACE)
            self.measuring.verify(analog, first_call)
            self.measuring.set_input_ranges(analog, self.plan.range_batches)
            layers = named_analog_layers(analog)
            self.shares = _weight_shares(analog, layers)
            places = [(WHOLE, ONLY), *((name, ONLY) for name in layers)]
            places += [(name, BUT) for name in layers] if reverse and len(layers) > 1 else []
            self.total = len(self.plan.scenarios) * len(self.plan.chip_seeds) * len(places) * len(self.plan.methods)
            # Copies: the reference's own modules stay out of the chip's model.
            with split_attention(copy_model(model)) as split:
                twins = match_reference(analog, split)
            for chip_seed in self.plan.chip_seeds:
                program_chip(analog, chip_seed, float(scenario.t_inference))
                for name, kind in places:
                    away = [] if name == WHOLE else [n for n in layers if (n == name) == (kind == BUT)]
                    with _swapped(analog, [(layers[n], twins[n]) for n in away]):
                        for method in self.plan.methods:
                            self.done.append(self._record(analog, scenario, name, kind, method, chip_seed))
                            yield self.done[-1]

    def _record(
        self, analog: nn.Module, scenario: Scenario, name: str, kind: str, method: PlannedMethod, chip_seed: int
    ) -> Record:
        found = self.known.get((scenario.name, name, kind, method.label, chip_seed))
        if found is None:
            found, _ = self.measuring.record(analog, scenario, chip_seed, method, place=_PLACE, expected=self.digital)
        digital = self.digital[self.metric]
        axes = {"layer": name, "on_chip": kind}
        return replace(found, metrics={self.metric: value_in(found, self.metric, digital)}, axes=axes)


def _weight_shares(analog: nn.Module, layers: Iterable[str]) -> dict[str, float]:
    report: Any = analog.conversion_report
    weights = {entry.name: entry.n_weights for entry in report.converted}
    return {name: weights.get(name, 0) / max(report.n_weights, 1) for name in layers}


@contextmanager
def _swapped(model: nn.Module, pairs: Iterable[tuple[nn.Module, nn.Module]]) -> Iterator[None]:
    """Put the second module of each pair where the first is, in every place that has it, and back at the end."""
    stand_ins = {id(old): new for old, new in pairs}
    changed: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in stand_ins:
                changed.append((parent, name, child))
    for parent, name, child in changed:
        parent._modules[name] = stand_ins[id(child)]
    replace_held(model, stand_ins)
    try:
        yield
    finally:
        for parent, name, child in changed:
            parent._modules[name] = child
        replace_held(model, {id(stand_ins[id(child)]): child for _, _, child in changed})
