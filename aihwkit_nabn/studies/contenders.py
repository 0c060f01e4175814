"""Calibration against hardware-aware training: which rows there are, and measuring them on the same chips."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from aihwkit_nabn.errors import NabnError, check_number
from aihwkit_nabn.evaluation import MethodSpec, Scenario
from aihwkit_nabn.evaluation.methods import label_methods
from aihwkit_nabn.evaluation.scenario import check_label
from aihwkit_nabn.results import UNCALIBRATED
from aihwkit_nabn.times import parse_time
from aihwkit_nabn.training.noise import TrainingNoise, matched_noise

HWA = "HWA"
"""Label of hardware-aware training at the right noise, and the beginning of the others' labels."""

COMPENSATED, COMPENSATED_NAME = "drift compensation only", "drift_compensation"
_WRONG = {0.25: "noise / 4", 0.5: "noise / 2", 2.0: "noise x 2", 4.0: "noise x 4"}


@dataclass(frozen=True, kw_only=True)
class NoiseSetting:
    """What a network is trained for once: one kind of chip, in use at one or several times.

    Args:
        name: Of the training; unique within a comparison.
        scenarios: Where the network is measured; all have the same RPU config.
        trained_at: Time after programming whose noise the training takes, as seconds or text.

    Raises:
        NabnError: a field has a value that it cannot have.
    """

    name: str
    scenarios: tuple[Scenario, ...]
    trained_at: float | str = 0.0

    def __post_init__(self) -> None:
        check_label("name", self.name)
        if not self.scenarios or not all(isinstance(scenario, Scenario) for scenario in self.scenarios):
            raise NabnError(f"scenarios of setting {self.name!r} must hold at least one Scenario")
        object.__setattr__(self, "trained_at", parse_time(self.trained_at))

    def matched_noise(self, model: nn.Module) -> TrainingNoise:
        """Return the right noise to train `model` at."""
        return matched_noise(model, self.scenarios[0].rpu_config, self.trained_at)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network that is put on the chips, and what is tried on it there.

    Attributes:
        key: Name for files and plots; empty for the network as it came.
        label: How tables call it.
        factor: It is trained at so many times the right noise; None: not trained.
        methods: Calibration methods, the uncalibrated one first.
        compensated: Whether the chips' drift compensation, where they have one, is on.
    """

    key: str
    label: str
    factor: float | None = None
    methods: tuple[MethodSpec, ...] = (MethodSpec(UNCALIBRATED, label="uncalibrated"),)
    compensated: bool = True

    def applies_to(self, scenario: Scenario) -> bool:
        """Whether it is measured there: switching drift compensation off takes one that is on."""
        return self.compensated or _compensates(scenario)

    def place(self, scenario: Scenario) -> Scenario:
        """Return where it is measured: the scenario, without drift compensation if it is to be off."""
        if self.compensated:
            return scenario
        config: Any = copy.deepcopy(scenario.rpu_config)
        config.drift_compensation = None
        return dataclasses.replace(scenario, rpu_config=config)

    def row(self, spec: MethodSpec, scenario: Scenario) -> tuple[str, str]:
        """Return label and method name of the records of a method."""
        label, name = str(spec.label), spec.method
        if not self.key:
            if name == UNCALIBRATED and self.compensated and _compensates(scenario):
                return COMPENSATED, COMPENSATED_NAME
            return label, name
        if name == UNCALIBRATED:
            return self.label, self.key
        return f"{self.label} + {label}", f"{self.key}+{name}"


def contenders(
    methods: Iterable[MethodSpec | str],
    after_training: Iterable[MethodSpec | str],
    wrong: Sequence[float] = (0.25, 2.0),
) -> list[Contender]:
    """Return what is compared: the network as it came, and trained at the right noise and at wrong ones.

    Args:
        methods: Calibration methods for the network as it came.
        after_training: Calibration methods for the network trained at the right noise.
        wrong: Factors on the right noise, > 0 and not 1.

    Raises:
        NabnError: a factor or a method is none.
    """
    before, after = label_methods(methods), label_methods(after_training)
    listed = [
        Contender(key="", label="", compensated=False, methods=(before[0],)),
        Contender(key="", label="", methods=tuple(before)),
        Contender(key="hwa", label=HWA, factor=1.0, methods=tuple(after)),
    ]
    for factor in wrong:
        check_number("wrong", factor, exclusive_minimum=0.0)
        if f"{factor:g}" == "1" or [f"{other:g}" for other in wrong].count(f"{factor:g}") > 1:
            raise NabnError(f"wrong must hold different factors other than 1, got {list(wrong)}")
        label = f"{HWA}, {_WRONG.get(factor, f'noise x {factor:g}')}"
        listed.append(Contender(key=f"hwa_x{factor:g}", label=label, factor=float(factor)))
    return listed


Job = tuple[NoiseSetting, Scenario, int, Contender]


def list_jobs(
    settings: Iterable[NoiseSetting], chip_seeds: Sequence[int], listed: Sequence[Contender]
) -> Iterator[Job]:
    """Yield what is to be measured; the work on one trained network comes together."""
    for setting in settings:
        for contender in listed:
            for scenario in setting.scenarios:
                if contender.applies_to(scenario):
                    for chip in chip_seeds:
                        yield setting, scenario, chip, contender


def rows_of(job: Job) -> list[str]:
    """Return the labels of the records a job gives."""
    _, scenario, _, contender = job
    return [contender.row(spec, scenario)[0] for spec in contender.methods]


def row_order(listed: Sequence[Contender], scenarios: Iterable[Scenario]) -> list[str]:
    """Return the labels of all rows: uncalibrated, drift compensation, methods, training, training and calibration."""
    places = list(scenarios)
    rows = [c.row(spec, s) for c in listed for spec in c.methods for s in places if c.applies_to(s)]
    ranks = {UNCALIBRATED: 0, COMPENSATED_NAME: 1}
    trained = {c.key for c in listed if c.key}
    rank = {label: ranks.get(name, 3 if name in trained else 4 if "+" in name else 2) for label, name in rows}
    return sorted(rank, key=lambda label: rank[label])


def settings_of(listed: Sequence[Contender], settings: Iterable[NoiseSetting]) -> list[dict[str, Any]]:
    """Return what the rows are, as plain JSON values."""
    return [
        {
            "setting": setting.name,
            "scenarios": [scenario.name for scenario in setting.scenarios],
            "trained_at_s": setting.trained_at,
            "trained_at_factors": [contender.factor for contender in listed if contender.factor is not None],
        }
        for setting in settings
    ]


def _compensates(scenario: Scenario) -> bool:
    return getattr(scenario.rpu_config, "drift_compensation", None) is not None
