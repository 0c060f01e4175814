"""What lies beside a result: the layers' sensitivity, and example pictures."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.reporting.html.sources import SENSITIVITY, read_json
from aihwkit_nabn.reporting.html.tables import Entry, Table
from aihwkit_nabn.reporting.sensitivity import TITLES, caption, loss_style, loss_text
from aihwkit_nabn.results import Results
from aihwkit_nabn.results.layers import WHOLE, rankings, strongest

_KINDS = {".jpg": "jpeg", ".png": "png"}
_LARGEST = 2**20  # bytes of one picture; the page holds them all


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The layers' losses as sentences and tables."""

    sentences: list[str]
    tables: list[Table]
    note: str


def find_sensitivity(folder: Path) -> Sensitivity | None:
    """Return what the folder's ``sensitivity.json`` says, or None where there is none.

    Raises:
        NabnError: the file is damaged.
    """
    path = folder / SENSITIVITY
    if not path.is_file():
        return None
    result = Results.from_json(path)
    style = loss_style(result)
    sentences, tables = [], []
    for scenario, on_chip, ranks in rankings(result):
        largest = max((rank.losses[m].mean for rank in ranks for m in result.methods if rank.layer != WHOLE), default=0)
        rows = []
        for rank in ranks:
            entries = [Entry(text="" if rank.share != rank.share else f"{rank.share:.1%}")]
            for method in result.methods:
                loss = rank.losses[method]
                bar = max(0.0, min(1.0, loss.mean / largest)) if largest > 0 and rank.layer != WHOLE else None
                entries.append(Entry(text=loss_text(loss, style), share=bar))
            rows.append((rank.layer, entries))
        head = ["layer", "share of weights", *result.methods]
        tables.append(Table(caption=f"{scenario}: {TITLES[on_chip]}", header=head, rows=rows))
        if on_chip == "only":
            worst = strongest(ranks, result.methods[0])
            if worst:
                named = ", ".join(f"{r.layer} ({loss_text(r.losses[result.methods[0]], style)})" for r in worst)
                sentences.append(f"Under {scenario}, the layers that cost most on their own: {named}.")
            else:
                sentences.append(f"Under {scenario}, no single layer costs more than chance would explain.")
    return Sensitivity(sentences=sentences, tables=tables, note=caption(result))


def find_examples(folder: Path) -> dict[str, Any] | None:
    """Return the example pictures of a folder with their files as ``data:`` addresses, or None where there are none.

    Raises:
        NabnError: ``examples.json`` or a picture it names is damaged, missing or elsewhere.
    """
    path = folder / "examples" / "examples.json"
    content = read_json(path)
    if content is None:
        return None
    try:
        return {
            "scenario": str(content["scenario"]),
            "chip": int(content["chip_seed"]),
            "classes": [(str(entry["name"]), _color(entry["color"])) for entry in content["classes"]],
            "images": [
                (
                    str(image["name"]),
                    [(str(panel["title"]), _embedded(path.parent, panel["file"])) for panel in image["panels"]],
                )
                for image in content["images"]
            ],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, NabnError):
            raise
        raise NabnError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _color(text: str) -> str:
    if not re.fullmatch(r"#[0-9a-f]{6}", text):
        raise ValueError(f"{text!r} is no colour")
    return text


def _embedded(folder: Path, name: str) -> str:
    kind = _KINDS.get(Path(name).suffix)
    if Path(name).name != name or kind is None:
        raise ValueError(f"{name!r} is no picture of this folder")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise NabnError(f"cannot read {folder / name}: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise NabnError(f"{folder / name} has {len(content):,} bytes; a picture in the report has {_LARGEST:,} at most")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
