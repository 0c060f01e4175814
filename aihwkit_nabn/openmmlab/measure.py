"""The config's own evaluator as a function of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from mmengine.runner.amp import autocast
from torch import nn

from aihwkit_nabn.openmmlab.patches import count_only_tested, measure_without_boxes, report_classes

# The metrics people quote come first in tables.
_MAIN = ("bbox_mAP", "mIoU", "segm_mAP")


def evaluator_of(loop: Any, *, fp16: bool = False, per_class: bool = False) -> Callable[[nn.Module], dict[str, float]]:
    """Return ``eval_fn(model)``: the loop's data through the model's ``test_step`` into the loop's evaluator.

    The result holds every number the evaluator reports, those people quote first; text and NaN are left out. With
    `per_class`, COCO's and mmsegmentation's metrics report every class too, as ``bbox_mAP/car``, ``mIoU/car``.
    """
    count_only_tested(loop)
    for metric in loop.evaluator.metrics:
        measure_without_boxes(metric)
        if per_class:
            report_classes(metric)

    def eval_fn(model: nn.Module) -> dict[str, float]:
        network: Any = model
        for batch in loop.dataloader:
            with autocast(enabled=fp16):
                outputs = network.test_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return numbers_of(loop.evaluator.evaluate(len(loop.dataloader.dataset)))

    return eval_fn


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the metrics, the main ones first."""
    found = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    }
    return {name: found[name] for name in sorted(found, key=_rank)}


def _rank(name: str) -> int:
    short = name.rpartition("/")[2]
    return _MAIN.index(short) if short in _MAIN else len(_MAIN)
