"""One measurement of a sweep."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from aihwkit_nabn.chip import format_time, parse_time

_TIMES = ("seconds_calibration", "seconds_evaluation")


def exact_time(seconds: float) -> str:
    """Return a time as `format_time` does where that is exact, else all digits of its seconds."""
    text = format_time(seconds)
    return text if parse_time(text) == seconds else f"{seconds!r}s"


def join_key(**parts: object) -> str:
    """Return a text that is the same for the same measurement, in whatever order and on whatever machine it is made."""
    return " | ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """One measurement.

    Attributes:
        model: Name of the model's entry.
        noise: Noise setting; None for the digital model.
        t_inference: Seconds after programming.
        chip_seed: Seed the chip was programmed with; None for the digital model.
        jpeg: Quality of the images; None: not compressed.
        method: Label of the method; ``"digital"`` for the digital model.
        method_name: Registered name of the method.
        samples: Calibration images asked for.
        calibration: Where they came from.
        position: Images of the stream up to the end of the measurement; None without a stream.
        metrics: What was measured.
        n_calibration_samples: Calibration images used.
        seconds_calibration: Time that calibrating took; no part of what must be equal.
        seconds_evaluation: Time that measuring took; no part of what must be equal.
    """

    model: str
    noise: str | None
    t_inference: float | None
    chip_seed: int | None
    jpeg: int | None
    method: str
    method_name: str
    samples: int | None = None
    calibration: str | None = None
    position: int | None = None
    metrics: dict[str, float]
    n_calibration_samples: int = 0
    seconds_calibration: float = 0.0
    seconds_evaluation: float = 0.0

    @property
    def key(self) -> str:
        """What was measured, as text."""
        return record_key(**{name: getattr(self, name) for name in _KEY})

    def comparable(self) -> dict[str, Any]:
        """Return everything but the times that it took."""
        return {name: value for name, value in asdict(self).items() if name not in _TIMES}


_KEY = [
    field.name
    for field in fields(SweepRecord)
    if field.name not in (*_TIMES, "method_name", "metrics", "n_calibration_samples")
]


def record_key(
    *,
    model: str,
    noise: str | None,
    t_inference: float | None,
    chip_seed: int | None,
    jpeg: int | None,
    method: str,
    samples: int | None,
    calibration: str | None,
    position: int | None,
) -> str:
    """Return the key of a measurement, see `SweepRecord` for its parts."""
    return join_key(
        model=model,
        noise=noise,
        time=None if t_inference is None else exact_time(t_inference),
        chip=chip_seed,
        jpeg=jpeg,
        method=method,
        samples=samples,
        calibration=calibration,
        position=position,
    )
