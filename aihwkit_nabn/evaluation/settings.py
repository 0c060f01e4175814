"""What a result says about how it came about, as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.calibration.report import LayerShift
from aihwkit_nabn.chip.container import checksum
from aihwkit_nabn.evaluation.plan import Plan
from aihwkit_nabn.evaluation.scenario import Scenario
from aihwkit_nabn.results import RecordLog
from aihwkit_nabn.results.provenance import plain, provenance


def describe(model: nn.Module, plan: Plan, *, max_samples: int | None, exclude: Sequence[str]) -> dict[str, Any]:
    """Return versions, seeds, scenarios with their RPU configs as text, and methods; also the command and date."""
    made = provenance()
    made["versions"]["torch"] = str(torch.__version__)  # says for which CUDA, too
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return {
        **made,
        "model": type(model).__name__,
        "device": "cpu" if tensor is None else str(tensor.device),
        "seed": plan.chip_seeds[0],
        "chips": len(plan.chip_seeds),
        "max_samples": max_samples,
        "exclude": list(exclude),
        "scenarios": [{**vars(scenario), "rpu_config": str(scenario.rpu_config)} for scenario in plan.scenarios],
        "methods": [
            {
                "label": method.label,
                "method": method.spec.method,
                "batches": method.spec.batches,
                "options": {key: plain(value) for key, value in method.spec.options.items()},
            }
            for method in plan.methods
        ],
    }


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


def setup_of(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Return what decides whether measurements belong together: the network, weights included, and what was set."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {"model": f"{type(model).__name__} {checksum('', tensors)[:16]}", **options}


def agree_on_files(log: RecordLog, scenarios: Iterable[Scenario]) -> None:
    """Have a log remember what noise settings have read from files, which their names do not say.

    Raises:
        NabnError: the log was made with other content.
    """
    for scenario in scenarios:
        model = scenario.rpu_config.noise_model
        if getattr(model, "reads_file", False):
            log.agree(f"noise of {scenario.name!r}", str(model))
