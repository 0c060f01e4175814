"""What each layer costs: the measurements, their statistics over chips, and the file they are kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.statistics import Estimate, estimate
from aihwkit_nabn.files import parse_json, write_text

FORMAT = "aihwkit_nabn.sensitivity"
VERSION = 1

ONLY, BUT = "only", "all but"
"""What is on the chip: the layer alone, or every layer but it."""

WHOLE = "(whole network)"
"""Stands where a layer's name would: every layer at once."""


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """What one layer cost on one chip.

    Attributes:
        scenario: Name of the scenario.
        layer: The layer, or `WHOLE`.
        on_chip: `ONLY` the layer, or all `BUT` it.
        method: Label of the method.
        chip_seed: The seed the chip was programmed with.
        loss: The digital model's metric minus the metric measured, in the metric's own unit.
    """

    scenario: str
    layer: str
    on_chip: str
    method: str
    chip_seed: int
    loss: float

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What tells it from the other measurements."""
        return self.scenario, self.layer, self.on_chip, self.method, self.chip_seed


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """A layer's losses over the chips.

    Attributes:
        layer: The layer, or `WHOLE`.
        share: Its share of the network's matrix weights; NaN for `WHOLE`.
        losses: By method label, the uncalibrated one first.
    """

    layer: str
    share: float
    losses: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class SensitivityResult:
    """What `measure_sensitivity` found.

    Attributes:
        metric: The metric that the losses are of.
        digital: The digital model's value of it.
        losses: One per scenario, layer, method and chip.
        shares: Each layer's share of the network's matrix weights.
        settings: What the run was made with, as in `EvaluationResult`.
    """

    metric: str
    digital: float
    losses: list[LayerLoss]
    shares: dict[str, float]
    settings: dict[str, Any]

    @property
    def scenarios(self) -> list[str]:
        """Names of the scenarios."""
        return list(dict.fromkeys(entry.scenario for entry in self.losses))

    @property
    def methods(self) -> list[str]:
        """Labels of the methods, the uncalibrated one first."""
        return list(dict.fromkeys(entry.method for entry in self.losses))

    @property
    def n_chips(self) -> int:
        """Number of chips per scenario."""
        return len({entry.chip_seed for entry in self.losses})

    def ranking(self, scenario: str, on_chip: str = ONLY) -> list[LayerRank]:
        """Return the layers of a scenario, the one that costs most without calibration first, `WHOLE` before all.

        With `BUT` the layer that saves most by staying digital comes first. Empty where it was not measured.
        """
        found: dict[str, dict[str, list[float]]] = {}
        for entry in self.losses:
            if entry.scenario == scenario and (entry.on_chip == on_chip or entry.layer == WHOLE):
                found.setdefault(entry.layer, {}).setdefault(entry.method, []).append(entry.loss)
        ranks = [
            LayerRank(
                layer=layer,
                share=self.shares.get(layer, math.nan),
                losses={method: estimate(values) for method, values in methods.items()},
            )
            for layer, methods in found.items()
        ]
        if not any(rank.layer != WHOLE for rank in ranks):
            return []
        sign = 1 if on_chip == BUT else -1
        return sorted(ranks, key=lambda rank: (rank.layer != WHOLE, sign * rank.losses[self.methods[0]].mean))

    def to_json(self, path: str | Path) -> Path:
        """Write everything to a file that `from_json` reads, in one step.

        Raises:
            NabnError: the file cannot be written.
        """
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(Path(path), json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return Path(path)

    @classmethod
    def from_json(cls, path: str | Path) -> SensitivityResult:
        """Read what `to_json` wrote.

        Raises:
            NabnError: no such file, or one that is damaged, of something else, or of a newer version.
        """
        try:
            content = parse_json(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise NabnError(f"cannot read {path}: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise NabnError(f"{path} is no sensitivity file of this package: its format is not {FORMAT!r}")
        if content.get("version") != VERSION:
            raise NabnError(f"{path} has version {content.get('version')!r}; this release reads version {VERSION}")
        try:
            return cls(
                metric=_text(content["metric"]),
                digital=_number(content["digital"]),
                losses=[read_loss(entry) for entry in content["losses"]],
                shares={_text(name): _number(share) for name, share in content["shares"].items()},
                settings=dict(content["settings"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NabnError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def read_loss(entry: Any) -> LayerLoss:
    """Return a measurement from what a file held.

    Raises:
        TypeError: a value is of the wrong type, missing or unknown.
    """
    if not isinstance(entry, dict) or set(entry) != {field.name for field in fields(LayerLoss)}:
        raise TypeError(f"no measurement: {entry!r}")
    texts = {name: _text(entry[name]) for name in ("scenario", "layer", "on_chip", "method")}
    return LayerLoss(**texts, chip_seed=int(_number(entry["chip_seed"])), loss=_number(entry["loss"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no finite number")
    return value


def strongest(ranks: Sequence[LayerRank], method: str, count: int = 3) -> list[LayerRank]:
    """Return the layers, not `WHOLE`, whose loss is largest and above 0 beyond what chips vary by."""
    real = [rank for rank in ranks if rank.layer != WHOLE]
    sure = [rank for rank in real if rank.losses[method].low > 0]
    return sorted(sure, key=lambda rank: -rank.losses[method].mean)[:count]
