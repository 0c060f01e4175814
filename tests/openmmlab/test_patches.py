from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmseg")
pytest.importorskip("mmdet")

from mmdet.evaluation.metrics import CocoMetric
from mmseg.evaluation.metrics import IoUMetric

from aihwkit_nabn.openmmlab.patches import _renamed, report_classes


def test_segmentation_reports_the_classes_that_the_ground_truth_has() -> None:
    metric = IoUMetric()
    metric.dataset_meta = {"classes": ["road", "car", "absent"]}
    report_classes(metric)
    report_classes(metric)
    label = torch.tensor([[0, 0, 0, 1]])
    predicted = torch.tensor([[0, 0, 1, 1]])
    metric.results = [IoUMetric.intersect_and_union(predicted, label, 3, 255)]
    found = metric.compute_metrics(metric.results)
    assert found["mIoU/road"] == pytest.approx(66.67) and found["mIoU/car"] == 50.0
    assert "mIoU/absent" not in found and "mIoU" in found


def test_detection_asks_upstream_for_the_classes_and_renames_them() -> None:
    metric = CocoMetric(metric="bbox")
    report_classes(metric)
    assert metric.classwise
    found = _renamed({"bbox_mAP": 0.5, "car_precision": 0.4}, "bbox_mAP")
    assert found == {"bbox_mAP": 0.5, "bbox_mAP/car": 0.4}


def test_other_metrics_stay_as_they_are() -> None:
    class Other:
        def compute_metrics(self, results):
            return {"score": 1.0}

    metric = Other()
    report_classes(metric)
    assert metric.compute_metrics([]) == {"score": 1.0}
