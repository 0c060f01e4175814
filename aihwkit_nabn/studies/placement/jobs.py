"""What there is to do for a placement: jobs, and the method with each budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.calibration.method import takes_option
from aihwkit_nabn.calibration.methods.low_rank import check_budget
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation import MethodSpec
from aihwkit_nabn.evaluation.methods import method_spec
from aihwkit_nabn.results import UNCALIBRATED

BUDGETS = (0.0, 0.01, 0.03, 0.1)
"""Shares of the multiplications that corrections may cost, where the method makes any."""


@dataclass(frozen=True, kw_only=True)
class DigitalJob:
    """The digital model on the images of the search, or of the verification."""

    images: str


@dataclass(frozen=True, kw_only=True)
class LayersJob:
    """Single layers on a chip.

    Attributes:
        label: The method's.
        chip_seed: The chip.
        left: Names of the groups.
    """

    label: str
    chip_seed: int
    left: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PointJob:
    """A placement on a chip.

    Attributes:
        label: The method's.
        chip_seed: The chip.
        digital: Names of the groups that stay digital.
        images: Of the search or of the verification.
        expected: The digital model's metrics on them.
        kept: The groups that stay digital, as records have them.
    """

    label: str
    chip_seed: int
    digital: tuple[str, ...]
    images: str
    expected: tuple[tuple[str, float], ...]
    kept: str


def with_budgets(spec: MethodSpec, budgets: Iterable[float] | None) -> list[MethodSpec]:
    """Return the method once for each budget, the smallest first, each with a label of its own."""
    if spec.method == UNCALIBRATED:
        raise NabnError("method must be one that calibrates, got 'none': layers are chosen for what it leaves over")
    spec = method_spec(spec.method, spec.options, batches=spec.batches, label=spec.label)
    makes_corrections = takes_option(CALIBRATION_METHODS.get(spec.method), "budget")
    if budgets is None:
        budgets = BUDGETS if makes_corrections and "budget" not in spec.options else ()
    elif not makes_corrections:
        raise NabnError(f"budgets are for methods that correct layers, such as low_rank and auto, not {spec.method!r}")
    listed = sorted({check_budget(budget) for budget in budgets})
    if not listed:
        return [replace(spec, label=spec.label or spec.method)]
    specs = [replace(spec, options={**spec.options, "budget": budget}) for budget in listed]
    return [replace(s, label=f"{s.method} ({', '.join(f'{k}={v}' for k, v in s.options.items())})") for s in specs]
