"""Layer by layer: what calibration did to the distributions, and which layers hurt most."""

from __future__ import annotations

import math
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.reporting.html.figures import Picture, shift_picture
from aihwkit_nabn.reporting.tables import Entry, Table
from aihwkit_nabn.results import Results

_NUMBERS = ("mean_before", "mean_after", "spread_before", "spread_after")
_WHAT = {
    "analog layer": "output of each analog layer against the digital network's",
    "BatchNorm": "input of each BatchNorm layer against its statistics",
}


def shift_pictures(result: Results, salt: str) -> tuple[list[Picture], list[Table]]:
    """Return a figure and a table per scenario and kind of layer; nothing for results that hold no shifts.

    Raises:
        NabnError: the shifts in the file are damaged.
    """
    stored = result.settings.get("layer_shifts") or {}
    pictures, tables = [], []
    for number, (scenario, methods) in enumerate(_checked(stored).items()):
        kinds: dict[str, dict[str, list[Any]]] = {}
        for label, layers in methods.items():
            for layer in layers:
                kinds.setdefault(layer["kind"], {}).setdefault(label, []).append(layer)
        for kind, rows in kinds.items():
            title = f"{scenario}: {_WHAT.get(kind, kind)}"
            pictures.append(shift_picture(result, rows, title, f"{salt}s{number}{kind[0]}"))
            tables.append(_shift_table(title, rows))
    return pictures, tables


def _checked(stored: Any) -> dict[str, dict[str, list[dict[str, Any]]]]:
    try:
        for methods in stored.values():
            for layers in methods.values():
                for layer in layers:
                    str(layer["name"]), str(layer["kind"])
                    if not all(math.isfinite(layer[number]) for number in _NUMBERS):
                        raise ValueError("a number is not finite")
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise NabnError(f"layer_shifts of the result's settings are damaged: {error}") from error
    checked: dict[str, dict[str, list[dict[str, Any]]]] = stored
    return checked


def _shift_table(title: str, rows: dict[str, list[Any]]) -> Table:
    first = next(iter(rows.values()))
    after = {label: {layer["name"]: layer for layer in layers} for label, layers in rows.items()}
    lines = []
    for layer in first:
        entries = [Entry(text=f"{layer['mean_before']:.3f} / {layer['spread_before']:.3f}")]
        for label in rows:
            found = after[label].get(layer["name"])
            text = "" if found is None else f"{found['mean_after']:.3f} / {found['spread_after']:.3f}"
            entries.append(Entry(text=text))
        lines.append((str(layer["name"]), entries))
    return Table(
        caption=f"{title} (shift of the mean in standard deviations / ln of the ratio of spreads)",
        header=["layer", "before", *rows],
        rows=lines,
    )
