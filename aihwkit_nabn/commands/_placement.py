"""Which layers a command leaves digital: names, and what `nabn place` has found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from aihwkit_nabn.evaluation import MethodSpec


def digital_names(exclude: Sequence[str] | None, placement: Path | None) -> tuple[str, ...]:
    """Return the names, and patterns of names, that ``--exclude`` and ``--placement`` stand for.

    Raises:
        NabnError: a file cannot be read, or is no placement.
    """
    from aihwkit_nabn.results.placement import excluded_names

    return excluded_names([*(exclude or ()), *([] if placement is None else [placement])])


def say_made_with(
    console: Console, placement: Path, model: nn.Module, methods: Iterable[MethodSpec], scenarios: Iterable[str]
) -> None:
    """Say what a placement was found with, where something else is to be tested.

    Raises:
        NabnError: it is of another network.
    """
    from aihwkit_nabn.evaluation.settings import setup_of
    from aihwkit_nabn.nn.excluding import check_placement
    from aihwkit_nabn.results import UNCALIBRATED
    from aihwkit_nabn.results.placement import Placement

    found = Placement.from_json(placement)
    check_placement(placement, found, model)
    tested = [spec for spec in methods if spec.method != UNCALIBRATED]
    same = any(
        spec.method == found.method and dict(spec.options).items() >= dict(found.options).items() for spec in tested
    )
    other = "" if found.network == setup_of(model)["model"] else " for other weights of this network"
    if not same or other or any(noise != found.noise for noise in scenarios):
        line = f"{placement} was found with {found.made_with} under {found.noise}{other}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)
