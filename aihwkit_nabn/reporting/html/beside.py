"""What lies beside a result: the layers' sensitivity, and example pictures."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.reporting.html.sources import SENSITIVITY, read_json
from aihwkit_nabn.reporting.sensitivity import caption, loss_style, sensitivity_tables
from aihwkit_nabn.results import Results
from aihwkit_nabn.results.layers import ONLY, rankings, strongest

_KINDS = {".jpg": "jpeg", ".png": "png"}
_LARGEST = 2**20  # bytes of one picture; the page holds them all


def find_sensitivity(folder: Path) -> dict[str, Any] | None:
    """Return what the folder's ``sensitivity.json`` says, as sentences and tables, or None where there is none.

    Raises:
        NabnError: the file is damaged.
    """
    path = folder / SENSITIVITY
    if not path.is_file():
        return None
    result = Results.from_json(path)
    style, unaided = loss_style(result), result.methods[0]
    sentences = []
    for scenario, on_chip, ranks in rankings(result):
        if on_chip == ONLY:
            worst = strongest(ranks, unaided)
            named = ", ".join(f"{rank.layer} ({style.estimate(rank.losses[unaided])})" for rank in worst)
            told = (
                f"the layers that cost most on their own: {named}"
                if worst
                else "no single layer costs more than chance"
            )
            sentences.append(f"Under {scenario}, {told}.")
    return {"sentences": sentences, "tables": list(sensitivity_tables(result)), "note": caption(result)}


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
