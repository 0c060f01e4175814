"""One measurement: a method on a chip."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Record:
    """One method measured on one chip.

    Attributes:
        scenario: Name of the scenario.
        group: The scenario's group.
        strength: The scenario's place on a plot's horizontal axis.
        t_inference: Seconds after programming.
        method: Label of the method.
        method_name: Registered name of the method; ``"none"`` for the chip as programmed.
        chip_seed: The seed the chip was programmed with.
        metrics: What ``eval_fn`` returned.
        seconds_calibration: Time that calibrating took.
        seconds_evaluation: Time that ``eval_fn`` took.
        n_calibration_samples: Number of samples that calibrating used.
        note: What calibrating had to say beside the numbers, such as that tuning stayed at its start.
    """

    scenario: str
    group: str | None
    strength: float | None
    t_inference: float
    method: str
    method_name: str
    chip_seed: int
    metrics: dict[str, float]
    seconds_calibration: float
    seconds_evaluation: float
    n_calibration_samples: int
    note: str = ""
