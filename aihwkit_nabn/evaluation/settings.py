"""What a result says about how it came about, as plain JSON values."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from aihwkit_nabn._version import __version__
from aihwkit_nabn.evaluation.plan import Plan


def describe(model: nn.Module, plan: Plan, *, max_samples: int | None, exclude: Sequence[str]) -> dict[str, Any]:
    """Return versions, seeds, scenarios with their RPU configs as text, and methods."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return {
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
