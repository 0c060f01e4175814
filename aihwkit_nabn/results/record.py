"""One measurement: a method on a chip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

UNCALIBRATED = "none"
"""The method that does nothing; every evaluation contains it."""

DIGITAL = "digital"
"""The digital model's method, and the label of its row."""

UNVERIFIED = "not verified: "
"""How a conversion's report begins to say so, before the reason."""

_TIMES = ("seconds_calibration", "seconds_evaluation")


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
        chip_seed: The seed the chip was programmed with; None for the digital model.
        metrics: What ``eval_fn`` returned.
        seconds_calibration: Time that calibrating took; no part of what must be equal.
        seconds_evaluation: Time that ``eval_fn`` took; no part of what must be equal.
        n_calibration_samples: Number of samples that calibrating used.
        note: What calibrating had to say beside the numbers, such as that tuning stayed at its start.
        axes: What else a study goes over, by name: the layer, the number of calibration images; plain JSON values.
    """

    scenario: str
    group: str | None = None
    strength: float | None = None
    t_inference: float = 0.0
    method: str
    method_name: str
    chip_seed: int | None
    metrics: dict[str, float]
    seconds_calibration: float = 0.0
    seconds_evaluation: float = 0.0
    n_calibration_samples: int = 0
    note: str = ""
    axes: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What was measured, as text."""
        return key_of(self.scenario, self.t_inference, self.chip_seed, self.method, self.axes)

    def axis(self, name: str) -> Any:
        """Return the value of an axis or of another field; None where the record has no such axis."""
        return self.axes[name] if name in self.axes else getattr(self, name, None)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "axes" or value}

    def comparable(self) -> dict[str, Any]:
        """Return everything but the times that it took."""
        return {name: value for name, value in self.to_dict().items() if name not in _TIMES}


def key_of(
    scenario: str,
    t_inference: float,
    chip_seed: int | None,
    method: str | None,
    axes: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Return a text that is the same for the same measurement, in whatever order and on whatever machine it is made.

    See `Record` for the parts; those that are None are left out.
    """
    parts = {"scenario": scenario, "time": f"{float(t_inference)!r}s", "chip": chip_seed, "method": method}
    parts |= {name: axes[name] for name in sorted(axes)}
    return " | ".join(f"{name} {value}" for name, value in parts.items() if value is not None)
