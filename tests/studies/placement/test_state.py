"""The whole search on networks of a few numbers, against every set of layers there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from aihwkit_nabn.results import Record
from aihwkit_nabn.studies.placement.state import State, joined

NAMES = tuple("abcdefg")
SEEDS = (5, 6)
Loss = Callable[[frozenset[str], str], float]


def _record(label: str, seed: int | None, metrics: dict[str, float], **axes: str) -> Record:
    return Record(scenario="s", method=label, method_name="m", chip_seed=seed, metrics=metrics, axes=axes)


def _search(
    disagreements: dict[str, float], costs: dict[str, float], loss: Loss, bound: float, budgets: dict[str, float]
) -> tuple[State, int]:
    """Let a search run on a network whose loss is a function of its digital layers; return where it ends."""
    records = [_record("digital", None, {"accuracy": 100.0}, phase="digital", row=row) for row in ("search", "verify")]
    points = 0
    while True:
        state = State(list(records), list(budgets), NAMES, SEEDS, bound)
        wanted = state.search()
        if wanted is None:
            return state, points
        label, names = wanted
        if names is None:
            for place, name in enumerate(NAMES):
                alone = disagreements[name], costs[name], float(place)
                metrics = dict(zip(("disagreement", "multiplications", "first call"), alone, strict=True))
                records += [_record(label, seed, metrics, phase="layers", layer=name) for seed in SEEDS]
        else:
            points += 1
            metrics = {"accuracy": 100.0 - loss(frozenset(names), label), "corrections": budgets[label]}
            new = [_record(label, seed, metrics, phase="search", kept=joined(names)) for seed in SEEDS]
            assert new[0].key not in {record.key for record in records}, "nothing is asked for twice"
            records += new


def _draw(seed: int) -> tuple[dict[str, float], dict[str, float]]:
    draw = np.random.default_rng(seed)
    costs = draw.exponential(size=len(NAMES)) + 1e-3
    return (
        dict(zip(NAMES, draw.exponential(size=len(NAMES)).tolist(), strict=True)),
        dict(zip(NAMES, (costs / costs.sum()).tolist(), strict=True)),
    )


def _best(costs: dict[str, float], loss: Loss, bound: float, budgets: dict[str, float]) -> float:
    """Return the least cost of any method and any set of digital layers, one at least on tiles, within the bound."""
    sets = itertools.chain.from_iterable(itertools.combinations(NAMES, size) for size in range(len(NAMES)))
    found = []
    for kept in map(frozenset, sets):
        share = sum(costs[name] for name in kept)
        found += [share + (1 - share) * b for label, b in budgets.items() if loss(kept, label) <= bound]
    return min(found, default=float("inf"))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("bound", [5.0, 20.0, 60.0, 99.0])
def test_against_every_set_of_layers_and_every_budget(seed: int, bound: float) -> None:
    disagreements, costs = _draw(seed)
    budgets = {"none": 0.0, "some": 0.02, "many": 0.1}
    left = {"none": 1.0, "some": 0.6, "many": 0.3}
    total = sum(disagreements.values())

    def loss(kept: frozenset[str], label: str) -> float:
        return 100 * left[label] * sum(v for name, v in disagreements.items() if name not in kept) / total

    state, points = _search(disagreements, costs, loss, bound, budgets)
    choice, best = state.choice(), _best(costs, loss, bound, budgets)
    if choice.met:
        assert loss(frozenset(choice.digital), choice.label) <= bound
        cost = state.cost(choice.label, choice.digital)
        assert best <= cost + 1e-12
        assert cost <= best + max(costs.values())
    else:
        assert all(loss(frozenset(NAMES) - {state.steps(label)[-1].name}, label) > bound for label in budgets)
    assert points <= 2 * len(budgets) * len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_one_layer_that_the_order_has_anywhere_is_found_alone(name: str) -> None:
    disagreements = {each: 10.0 - place for place, each in enumerate(NAMES)}
    costs = dict.fromkeys(NAMES, 1 / len(NAMES))

    def loss(kept: frozenset[str], label: str) -> float:
        return 1.0 if name in kept else 50.0

    state, _ = _search(disagreements, costs, loss, 10.0, {"none": 0.0})
    choice = state.choice()
    if name == NAMES[-1]:  # it is the one that stays on tiles; then the usual rule has it
        assert choice.met and set(choice.digital) == {"a", "g"}
    else:
        assert choice.met and choice.digital == (name,)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_never_dearer_than_the_usual_rule_where_that_would_do(seed: int) -> None:
    disagreements, costs = _draw(seed)
    draw = np.random.default_rng(seed)
    worth = dict(zip(NAMES, draw.exponential(size=len(NAMES)).tolist(), strict=True))  # another than the outputs tell
    total = sum(worth.values())

    def loss(kept: frozenset[str], label: str) -> float:
        return 100 * sum(value for name, value in worth.items() if name not in kept) / total

    bound = loss(frozenset("ag"), "none")
    state, _ = _search(disagreements, costs, loss, bound, {"none": 0.0})
    choice = state.choice()
    assert choice.met and loss(frozenset(choice.digital), "none") <= bound
    assert state.cost(choice.label, choice.digital) <= costs["a"] + costs["g"] + 1e-12


def test_a_bound_out_of_reach_gives_the_least_loss() -> None:
    disagreements, costs = _draw(0)
    state, _ = _search(disagreements, costs, lambda kept, label: 50.0 - len(kept), 1.0, {"none": 0.0})
    assert not state.choice().met and len(state.choice().digital) == len(NAMES) - 1
