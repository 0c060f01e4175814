"""Colours, markers and line kinds of the methods: the same method looks the same in every plot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from aihwkit_nabn.results import Record

# Okabe and Ito's colours, told apart with every common kind of colour blindness (jfly.uni-koeln.de/color), and wine in
# place of their yellow, which is too pale for a line on white.
_KNOWN = {
    "none": ("#777777", "o"),
    "population": ("#0072B2", "s"),
    "ema": ("#E69F00", "^"),
    "prior": ("#CC79A7", "D"),
    "batch": ("#56B4E9", "v"),
    "online": ("#009E73", "P"),
    "paired": ("#D55E00", "X"),
    "common_mode": ("#6699CC", "*"),
    "low_rank": ("#661100", "8"),
    "auto": ("#332288", "p"),
    "distill": ("#882255", "<"),
    # Rows of a comparison with hardware-aware training.
    "drift_compensation": ("#000000", "|"),
    "hwa": ("#117733", ">"),
    "hwa+paired": ("#AA3377", "H"),
    "hwa+common_mode": ("#4477AA", "h"),
    "hwa+distill": ("#AA4499", "d"),
    "hwa+auto": ("#225555", "P"),
    "hwa_x0.25": ("#999933", "p"),
    "hwa_x2": ("#44AA99", "h"),
}
_FURTHER = [("#6699CC", "H"), ("#117733", ">"), ("#999933", "p"), ("#44AA99", "h"), ("#AA4499", "d")]
_Dashes = Literal["-", "--", "-.", ":"]
_DASHES: list[_Dashes] = ["-", "--", "-.", ":"]


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """How a method's line is drawn, in matplotlib's words."""

    color: str
    marker: str
    linestyle: _Dashes
    face: str

    @property
    def options(self) -> dict[str, Any]:
        """What matplotlib's functions take to draw the line and its marks."""
        look = {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}
        return {**look, "markerfacecolor": self.face}


def line_styles(records: Iterable[Record]) -> dict[str, LineStyle]:
    """Return a style for each method label.

    Colour and marker go with the registered name, so that they are the same in plots with other methods; several labels
    of one method differ in the dashes and in filled or hollow marks. A method that is not this package's has a colour
    by its name's hash.
    """
    names = {record.method: record.method_name for record in records}
    styles: dict[str, LineStyle] = {}
    seen: dict[str, int] = {}
    for label, name in names.items():
        color, marker = _KNOWN.get(name) or _FURTHER[_stable_hash(name) % len(_FURTHER)]
        variant = seen.setdefault(color, 0)
        seen[color] += 1
        dashes, face = _DASHES[variant % len(_DASHES)], "white" if variant % 2 else color
        styles[label] = LineStyle(color=color, marker=marker, linestyle=dashes, face=face)
    return styles


def _stable_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
