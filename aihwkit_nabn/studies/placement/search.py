"""The order in which layers are kept digital, and how few of them suffice: pure functions on numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from aihwkit_nabn.results.placing import Step

Losses = Sequence[float]
"""One loss per search chip, always of the same chips in the same order."""


def path(disagreements: Mapping[str, float], multiplications: Mapping[str, float]) -> list[Step]:
    """Return the order in which layers become digital: what disturbs the outputs most per multiplication, first.

    Errors of layers add up, nearly, so each beginning of the path is the cheapest set of layers that takes off as much.

    Args:
        disagreements: What each layer alone disturbs the network's outputs by, in parts of their variance.
        multiplications: What each costs, in parts of the network's.
    """

    def worth(name: str) -> float:
        if multiplications[name] > 0:
            return disagreements[name] / multiplications[name]
        return math.inf if disagreements[name] > 0 else 0.0

    order = sorted(disagreements, key=lambda name: (-worth(name), multiplications[name], name))
    return [Step(name=n, disagreement=disagreements[n], share=multiplications[n]) for n in order]


def upper(losses: Losses) -> float:
    """Return mean plus standard error; one chip has none."""
    spread = float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return float(np.mean(losses)) + spread


def smoothed(points: Mapping[int, Losses]) -> dict[int, list[float]]:
    """Return losses that do not rise along the path: neighbours that do take their mean, chip by chip.

    That is the least-squares fit of their means (pool adjacent violators, Ayer et al. 1955).
    """
    blocks: list[tuple[list[int], np.ndarray]] = []
    for kept in sorted(points):
        members, mean = [kept], np.asarray(points[kept], dtype=float)
        while blocks and blocks[-1][1].mean() < mean.mean():
            before, other = blocks.pop()
            mean = (len(before) * other + len(members) * mean) / (len(before) + len(members))
            members = before + members
        blocks.append((members, mean))
    return {kept: mean.tolist() for members, mean in blocks for kept in members}


def fewest(points: Mapping[int, Losses], bound: float) -> int | None:
    """Return the smallest number of digital layers whose mean loss plus its standard error is within the bound."""
    fits = smoothed(points)
    return next((kept for kept in sorted(fits) if upper(fits[kept]) <= bound), None)


def next_point(points: Mapping[int, Losses], most: int, bound: float) -> int | None:
    """Return which number of digital layers is to be measured next, None where nothing more need be known.

    None digital comes first, then 1, 3, 7, ..., for few are cheap; from the first within the bound, bisection. Where a
    neighbour of the edge is within two standard errors of the bound, the one beyond it is measured too.

    Args:
        points: The losses at those that have been measured.
        most: The largest number that is of interest; what lies beyond is taken to be within the bound.
        bound: The loss that is allowed.
    """
    if most < 0:
        return None
    if 0 not in points:
        return 0
    fits = smoothed(points)
    found = fewest(points, bound)
    inside = most + 1 if found is None else found
    outside = max((kept for kept in points if kept < inside), default=-1)
    if inside - outside > 1:
        return (inside + outside) // 2 if found is not None else min(2 * outside + 1, most)
    if outside < 0:
        return None
    beyond = [(inside, inside + 1), (outside, outside - 1)]
    for edge, neighbour in beyond:
        if edge in fits and neighbour not in points and 0 <= neighbour <= most and _unclear(fits[edge], bound):
            return neighbour
    return None


def _unclear(losses: Losses, bound: float) -> bool:
    return abs(float(np.mean(losses)) - bound) <= 2 * (upper(losses) - float(np.mean(losses)))
