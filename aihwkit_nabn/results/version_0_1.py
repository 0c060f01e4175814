"""What files of version 0.1 said in other words, put into today's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.results.record import DIGITAL, UNCALIBRATED, Record

SENSITIVITY, SWEEP = "aihwkit_nabn.sensitivity", "aihwkit_nabn.sweep"
"""Formats of a result of `nabn sensitivity`, and of a sweep's log."""

_LOSS = "loss (version 0.1)"  # stands for the metric where only what the digital model has more of it is known


def setup_in(header: dict[str, Any]) -> Any:
    """Return what the first line of a log says the measurements were made with, None where it is none of 0.1's."""
    if header.get("format") == SWEEP and header.get("version") == 1:
        return header.get("sweep")
    return header.get("setup") if set(header) == {"setup"} else None


def entries(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a line of a log says as lines of today: ``record``, or ``note`` and ``value``."""
    record = _record_of_loss(line) if "loss" in line else line.get("record")
    if record is not None and "model" in record:
        record = _record_of_sweep(record)
    if "shifts" in line:
        yield {"note": f"shifts {line['record']['scenario']} | {line['record']['method']}", "value": line["shifts"]}
    if record is not None:
        yield {"record": record}
    if "conversion" in line:
        yield {"note": f"conversion {line['scenario']}", "value": line["conversion"]}
    if "settings" in line:
        for scenario in line["settings"]["conversion"]:
            yield {"note": f"settings {scenario}", "value": line["settings"]}
    if "digital" in line:
        yield {"note": DIGITAL, "value": line["digital"]}
    if "note" in line:
        yield line


def value_in(record: Record, metric: str, digital: float) -> float:
    """Return a record's metric; of one that a log of layers' losses held, from the loss and the digital value."""
    return digital - record.metrics[_LOSS] if _LOSS in record.metrics else record.metrics[metric]


def sensitivity(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return ``digital``, ``records`` and ``settings`` of a result of `nabn sensitivity`, as today's have them.

    Raises:
        NabnError: it is damaged.
    """
    try:
        metric, digital = content["metric"], content["digital"]
        records = [_record_of_loss(entry) for entry in content["losses"]]
        for record in records:
            record["metrics"] = {metric: digital - record["metrics"][_LOSS]}
        settings = {**content["settings"], "shares": content["shares"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NabnError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    return {"digital": {metric: digital}, "records": records, "settings": settings}


def _record_of_sweep(record: dict[str, Any]) -> dict[str, Any]:
    axes = {name: record[name] for name in ("model", "jpeg", "samples", "calibration", "position")}
    kept = {name: value for name, value in record.items() if name not in axes and name != "noise"}
    place = {"group": None, "strength": None, "scenario": DIGITAL if record["noise"] is None else record["noise"]}
    return {**kept, **place, "t_inference": record["t_inference"] or 0.0, "axes": axes}


def _record_of_loss(entry: dict[str, Any]) -> dict[str, Any]:
    axes = {name: entry[name] for name in ("layer", "on_chip")}
    return {
        **{name: entry[name] for name in ("scenario", "method", "chip_seed")},
        **{"group": None, "strength": None, "t_inference": 0.0, "n_calibration_samples": 0},
        **{"seconds_calibration": 0.0, "seconds_evaluation": 0.0},
        # Labels were unique, and only the uncalibrated chip's was another than the method's name by default.
        "method_name": UNCALIBRATED if entry["method"] == "uncalibrated" else entry["method"],
        "metrics": {_LOSS: entry["loss"]},
        "axes": axes,
    }
