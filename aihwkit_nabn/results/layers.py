"""What each layer costs: the ranking of layers in results whose records have the axes ``layer`` and ``on_chip``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aihwkit_nabn.errors import NabnError, is_finite_number
from aihwkit_nabn.results.record import Record
from aihwkit_nabn.results.result import Results
from aihwkit_nabn.results.statistics import Estimate, estimate

ONLY, BUT = "only", "all but"
"""What is on the chip: the layer alone, or every layer but it."""

WHOLE = "(whole network)"
"""Stands where a layer's name would: every layer at once."""

SHARES = "shares"
"""Where a result's settings have each layer's share of the network's matrix weights."""


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


def loss(result: Results, record: Record) -> float:
    """Return what the digital model has more of the first metric, in the metric's own unit."""
    name = result.metric_name()
    return result.digital[name] - record.metrics[name]


def ranking(result: Results, scenario: str, on_chip: str = ONLY) -> list[LayerRank]:
    """Return the layers of a scenario, the one that costs most without calibration first, `WHOLE` before all.

    With `BUT` the layer that saves most by staying digital comes first. Empty where it was not measured.

    Raises:
        NabnError: a layer lacks one of the methods, or the shares in the settings are damaged.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for record in result.records:
        layer = str(record.axis("layer"))
        if record.scenario == scenario and (record.axis("on_chip") == on_chip or layer == WHOLE):
            found.setdefault(layer, {}).setdefault(record.method, []).append(loss(result, record))
    shares = result.settings.get(SHARES, {})
    if not isinstance(shares, dict) or not all(is_finite_number(share) for share in shares.values()):
        raise NabnError(f"{SHARES} of the result's settings must be numbers by layer, got {shares!r}")
    for layer, methods in found.items():
        for method in result.methods:
            if method not in methods:
                raise NabnError(f"layer {layer!r} lacks method {method!r} in scenario {scenario!r}")
    ranks = [
        LayerRank(
            layer=layer,
            share=shares.get(layer, math.nan),
            losses={method: estimate(values) for method, values in methods.items()},
        )
        for layer, methods in found.items()
    ]
    if not any(rank.layer != WHOLE for rank in ranks):
        return []
    sign = 1 if on_chip == BUT else -1
    return sorted(ranks, key=lambda rank: (rank.layer != WHOLE, sign * rank.losses[result.methods[0]].mean))


def rankings(result: Results) -> Iterator[tuple[str, str, list[LayerRank]]]:
    """Yield scenario, what is on the chip (`ONLY` or `BUT`), and the layers, the most telling one first."""
    for scenario in result.scenarios:
        for on_chip in (ONLY, BUT):
            ranks = ranking(result, scenario, on_chip)
            if ranks:
                yield scenario, on_chip, ranks


def strongest(ranks: Sequence[LayerRank], method: str, count: int = 3) -> list[LayerRank]:
    """Return the layers, not `WHOLE`, whose loss is largest and above 0 beyond what chips vary by."""
    real = [rank for rank in ranks if rank.layer != WHOLE]
    sure = [rank for rank in real if rank.losses[method].low > 0]
    return sorted(sure, key=lambda rank: -rank.losses[method].mean)[:count]
