"""The config's own evaluator as a function of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from mmengine.runner.amp import autocast
from torch import nn

from aihwkit_nabn.openmmlab.classes import report_classes

# The metrics people quote come first in tables.
_MAIN = ("bbox_mAP", "mIoU", "segm_mAP")


def evaluator_of(loop: Any, *, fp16: bool = False, per_class: bool = False) -> Callable[[nn.Module], dict[str, float]]:
    """Return ``eval_fn(model)``: the loop's data through the model's ``test_step`` into the loop's evaluator.

    The result holds every number the evaluator reports, those people quote first; text and NaN are left out.

    Args:
        loop: Has the data and the evaluator.
        fp16: Measure under autocast.
        per_class: Let COCO's and mmsegmentation's metrics report every class too, as ``bbox_mAP/car``, ``mIoU/car``.
    """
    count_only_tested(loop)
    for metric in loop.evaluator.metrics:
        measure_without_boxes(metric)
    if per_class:
        for metric in loop.evaluator.metrics:
            report_classes(metric)

    def eval_fn(model: nn.Module) -> dict[str, float]:
        network: Any = model
        for batch in loop.dataloader:
            with autocast(enabled=fp16):
                outputs = network.test_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        return numbers_of(loop.evaluator.evaluate(len(loop.dataloader.dataset)))

    return eval_fn


def count_only_tested(loop: Any) -> None:
    """Let COCO's metrics look for the images that are tested, where the config has limited them.

    With ``test_dataloader.dataset.indices=N`` they would count every object in the annotation file's other images as
    missed.
    """
    dataset = loop.dataloader.dataset
    if getattr(dataset, "_indices", None) is None:
        return
    for metric in loop.evaluator.metrics:
        if getattr(metric, "img_ids", ()) is None:
            metric.img_ids = [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]


def measure_without_boxes(metric: Any) -> None:
    """Let COCO's metric give its numbers, zeros, for a network that finds nothing in any image.

    Upstream gives none at all then, and a badly drifted chip is such a network. It gets one box without area and with a
    score of 0, which meets no object. Other metrics stay as they are; calling it twice does nothing more.
    """
    if not hasattr(metric, "_coco_api") or getattr(metric, "_nabn_without_boxes", False):
        return
    original = metric.compute_metrics

    def compute(results: Any) -> Any:
        if results and not any(len(found["labels"]) for _, found in results):
            (truth, found), *others = results
            results = [(truth, found | _box_of_nothing(truth, "masks" in found)), *others]
        return original(results)

    metric.compute_metrics = compute
    metric._nabn_without_boxes = True


def _box_of_nothing(truth: dict[str, Any], with_mask: bool) -> dict[str, Any]:
    zero = np.zeros(1, dtype=np.float32)
    found: dict[str, Any] = {"bboxes": np.zeros((1, 4), dtype=np.float32), "scores": zero, "mask_scores": zero}
    found["labels"] = np.zeros(1, dtype=np.int64)
    if with_mask:
        from pycocotools.mask import encode

        found["masks"] = [encode(np.zeros((truth["height"], truth["width"]), dtype=np.uint8, order="F"))]
    return found


def numbers_of(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among the metrics, the main ones first."""
    found = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    }
    order = sorted(found, key=lambda name: (_rank(name), list(found).index(name)))
    return {name: found[name] for name in order}


def _rank(name: str) -> int:
    short = name.rpartition("/")[2]
    return _MAIN.index(short) if short in _MAIN else len(_MAIN)
