"""What a result says about how it came about, as plain JSON values."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aihwkit_nabn._version import __version__
from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.evaluation.plan import Plan


def describe(model: nn.Module, plan: Plan, *, max_samples: int | None, exclude: Sequence[str]) -> dict[str, Any]:
    """Return versions, seeds, scenarios with their RPU configs as text, and methods; also the command and date."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return {
        "command": command_line(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "aihwkit_nabn": __version__,
            "aihwkit": _version("aihwkit"),
            "torch": torch.__version__,
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
        "model": type(model).__name__,
        "device": "cpu" if tensor is None else str(tensor.device),
        "seed": plan.chip_seeds[0],
        "chips": len(plan.chip_seeds),
        "max_samples": max_samples,
        "exclude": list(exclude),
        "scenarios": [
            {
                "name": scenario.name,
                "group": scenario.group,
                "strength": scenario.strength,
                "t_inference": scenario.t_inference,
                "rpu_config": str(scenario.rpu_config),
            }
            for scenario in plan.scenarios
        ],
        "methods": [
            {
                "label": method.label,
                "method": method.spec.method,
                "batches": method.spec.batches,
                "options": {key: _plain(value) for key, value in method.spec.options.items()},
            }
            for method in plan.methods
        ],
    }


def command_line() -> str:
    """Return the process's command line as text to read and to repeat, without this machine's folders.

    Of absolute paths only the last part stays.
    """
    program, *arguments = sys.argv or [""]
    shown = [re.sub(r"(?:^|(?<==))/(?:[^/]+/)*(?=[^/]+/?$)", "", text) for text in arguments]
    return shlex.join([Path(program).name or "python", *shown])


def describe_shifts(layers: Iterable[LayerShift]) -> list[dict[str, Any]]:
    """Return the layers' shifts before and after a calibration, four digits each; layers without a number left out."""
    described = []
    for layer in layers:
        numbers = {
            name: getattr(layer, name) for name in ("mean_before", "mean_after", "spread_before", "spread_after")
        }
        if all(math.isfinite(value) for value in numbers.values()):
            rounded = {name: float(f"{value:.4g}") for name, value in numbers.items()}
            described.append({"name": layer.name, "kind": layer.kind, **rounded})
    return described


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _plain(value: object) -> Any:
    """Return the value as JSON would give it back, or its text where JSON has no such thing."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return repr(value)
