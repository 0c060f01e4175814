"""Metrics class by class, out of the upstream metrics as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def report_classes(metric: Any) -> None:
    """Let one metric object of an evaluator report its main number for every class too.

    mmdetection's `CocoMetric` gives ``bbox_mAP/CLASS``, mmsegmentation's `IoUMetric` ``mIoU/CLASS`` in percent; other
    metrics stay as they are. Calling it twice does nothing more.
    """
    if getattr(metric, "_nabn_classes", False):
        return
    original = metric.compute_metrics
    if hasattr(metric, "classwise"):
        metric.classwise = True

        def compute(results: Any) -> Any:
            return _renamed(original(results), f"{metric.metrics[-1]}_mAP")

    elif hasattr(metric, "total_area_to_metrics"):

        def compute(results: Any) -> Any:
            classes = metric.dataset_meta["classes"]
            return {**original(results), **_class_iou(results, classes)}

    else:
        return
    metric.compute_metrics = compute
    metric._nabn_classes = True


def _renamed(metrics: Any, main: str) -> Any:
    """Return COCO's metrics with ``CLASS_precision`` as a part of `main`; upstream keeps those of its last kind."""
    return {
        f"{main}/{name.removesuffix('_precision')}" if name.endswith("_precision") else name: value
        for name, value in metrics.items()
    }


def _class_iou(results: Sequence[Any], classes: Sequence[str]) -> dict[str, float]:
    """Return the IoU in percent of every class that the ground truth has, the same ones whatever was predicted.

    Args:
        results: Per image the areas ``[classes]`` of intersection, union, prediction and label.
        classes: Their names.
    """
    intersection, union, _, label = (
        np.sum([np.asarray(areas, dtype=np.float64) for areas in column], axis=0)
        for column in zip(*results, strict=True)
    )
    return {
        f"mIoU/{name}": float(round(100 * intersection[i] / union[i], 2))
        for i, name in enumerate(classes)
        if label[i] > 0
    }
