"""The order of the layers and the search along it, against every set of layers there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from aihwkit_nabn.results.placing import Step
from aihwkit_nabn.studies.placement.search import fewest, next_point, path, smoothed, upper


def _layers(seed: int, n: int) -> tuple[dict[str, float], dict[str, float]]:
    draw = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(n)]
    costs = draw.exponential(size=n) + 1e-3
    return dict(zip(names, draw.exponential(size=n), strict=True)), dict(zip(names, costs / costs.sum(), strict=True))


def _left(disagreements: dict[str, float], kept: set[str]) -> float:
    return sum(value for name, value in disagreements.items() if name not in kept)


def _cheapest(disagreements: dict[str, float], costs: dict[str, float], allowed: float) -> float:
    """Return the least cost of any set of digital layers that leaves no more than is allowed."""
    sets = itertools.chain.from_iterable(
        itertools.combinations(disagreements, size) for size in range(len(disagreements) + 1)
    )
    return min(
        sum(costs[name] for name in kept) for kept in map(set, sets) if _left(disagreements, kept) <= allowed + 1e-12
    )


@pytest.mark.parametrize("seed", range(8))
def test_each_beginning_of_the_path_is_the_cheapest_set_that_leaves_as_little(seed: int) -> None:
    disagreements, costs = _layers(seed, 8)
    steps = path(disagreements, costs)
    assert {step.name for step in steps} == set(costs)
    for kept in range(len(steps) + 1):
        first = steps[:kept]
        left = _left(disagreements, {step.name for step in first})
        assert sum(step.share for step in first) == pytest.approx(_cheapest(disagreements, costs, left))


def _searched(steps: list[Step], loss, bound: float, most: int | None = None) -> tuple[int | None, dict]:
    points: dict[int, list[float]] = {}
    most = len(steps) if most is None else most
    while (kept := next_point(points, most, bound)) is not None:
        assert kept not in points and 0 <= kept <= most
        points[kept] = loss(kept)
    return fewest(points, bound), points


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 1.0])
def test_the_search_against_every_set_of_layers(seed: int, share: float) -> None:
    disagreements, costs = _layers(seed, 9)
    steps = path(disagreements, costs)
    total = sum(disagreements.values())

    def loss(kept: int) -> list[float]:
        return [_left(disagreements, {step.name for step in steps[:kept]}) / total]

    found, points = _searched(steps, loss, share)
    assert found is not None and loss(found)[0] <= share and (found == 0 or loss(found - 1)[0] > share)
    assert len(points) <= 2 + 2 * math.ceil(math.log2(found + 1)), "few points where few layers suffice"
    cost, best = sum(step.share for step in steps[:found]), _cheapest(disagreements, costs, share * total)
    # What is more than the best set's cost is at most the layer at the edge, which may stick out.
    assert best <= cost + 1e-12 and cost - (steps[found - 1].share if found else 0.0) <= best


def test_layers_that_cost_nothing_come_first_and_those_that_do_no_harm_last() -> None:
    steps = path({"a": 0.0, "b": 1.0, "c": 0.5, "d": 0.0}, {"a": 0.0, "b": 0.5, "c": 0.0, "d": 0.5})
    assert [step.name for step in steps] == ["c", "b", "a", "d"]


def test_noise_moves_the_edge_less_than_one_lucky_point() -> None:
    points = {0: [9.0, 9.2], 4: [2.0, 2.2], 5: [0.9, 0.8], 6: [1.9, 2.1], 8: [0.2, 0.1]}
    assert smoothed(points)[5] == pytest.approx([1.4, 1.45]) == smoothed(points)[6]
    assert fewest(points, 1.0) == 8 and fewest(points, 1.5) == 5


def test_what_smoothing_is_the_least_squares_fit_of() -> None:
    draw = np.random.default_rng(1)
    points = {kept: [float(value)] for kept, value in enumerate(draw.normal(size=9) - np.arange(9) / 4)}
    fit = np.array([value[0] for value in smoothed(points).values()])
    assert (np.diff(fit) <= 1e-12).all() and fit.sum() == pytest.approx(sum(value[0] for value in points.values()))
    raw = np.array([value[0] for value in points.values()])
    for _ in range(300):
        other = -np.sort(-(fit + 0.1 * draw.normal(size=9)))
        assert ((fit - raw) ** 2).sum() <= ((other - raw) ** 2).sum() + 1e-12


def test_the_standard_error_counts() -> None:
    assert upper([1.0]) == 1.0 and upper([0.0, 2.0]) == pytest.approx(2.0)
    assert fewest({0: [0.0, 1.8]}, 1.0) is None and fewest({0: [0.85, 0.95]}, 1.0) == 0


@pytest.mark.parametrize("seed", range(10))
def test_with_noise_it_ends_near_the_edge(seed: int) -> None:
    draw = np.random.default_rng(seed)
    steps = [Step(name=str(i), disagreement=1.0, share=1 / 20) for i in range(20)]
    found, points = _searched(steps, lambda kept: list(20.0 - kept + 0.5 * draw.normal(size=3)), 8.0)
    assert found is not None and 11 <= found <= 15
    assert len(points) <= 12


def test_what_lies_beyond_the_best_cost_is_not_measured() -> None:
    steps = [Step(name=str(i), disagreement=1.0, share=0.1) for i in range(10)]
    found, points = _searched(steps, lambda kept: [10.0 - kept], 3.0, most=4)
    assert found is None and max(points) <= 4
    assert next_point({}, -1, 1.0) is None
