"""Mean average precision, against what can be counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aihwkit_nabn.data.box_metrics import KINDS, BoxMetric
from aihwkit_nabn.data.coco import CocoAnnotations

SIZE = 64
# By image: category id, box, crowd. Ids have gaps, and the annotation ids begin with 0.
OBJECTS = [
    [(3, [4, 4, 20, 20], 0), (8, [30, 30, 24, 16], 0)],
    [(8, [10, 12, 40, 40], 0)],
    [],
    [(3, [0, 0, 60, 60], 1), (3, [2, 2, 12, 12], 0)],
]
LABELS = {1: 3, 2: 8}


def _truth(objects: Any = OBJECTS) -> CocoAnnotations:
    entries, number = [], 0
    for place, found in enumerate(objects):
        entries.append([])
        for category, box, crowd in found:
            x, y, w, h = box
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            entry = {"id": number, "image_id": 10 * place, "category_id": category, "bbox": box, "iscrowd": crowd}
            entry |= {"area": w * h, "segmentation": polygon}
            if crowd:
                mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
                mask[y : y + h, x : x + w] = 1
                counts = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel(), 0])).tolist()
                edges = np.diff([0, *counts, SIZE * SIZE]).tolist()
                entry["segmentation"] = {"size": [SIZE, SIZE], "counts": edges}
            entries[-1].append(entry)
            number += 1
    images = [{"id": 10 * i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(len(objects))]
    return CocoAnnotations(
        source=Path("x.json"), folder=Path("."), images=images, objects=entries, categories={3: "cell", 8: "dish"}
    )


def _found(objects: list[Any], score: float = 0.9) -> dict[str, torch.Tensor]:
    label_of = {category: label for label, category in LABELS.items()}
    boxes = torch.tensor([[x, y, x + w, y + h] for _, (x, y, w, h), _ in objects], dtype=torch.float32).view(-1, 4)
    masks = torch.zeros(len(objects), 1, SIZE, SIZE)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[0, y1:y2, x1:x2] = 0.8
    labels = torch.tensor([label_of[category] for category, *_ in objects], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.full((len(objects),), score), "masks": masks}


def _numbers(found: list[dict[str, torch.Tensor]], places: list[int] | None = None, **options: Any) -> dict[str, float]:
    places = list(range(len(OBJECTS))) if places is None else places
    metric = BoxMetric(_truth(), places, LABELS, **options)
    return metric.numbers([e for place in places for e in metric.entries(place, found[place])])


def test_all_found_is_one_and_nothing_is_zero() -> None:
    exact = [_found([entry for entry in entries if not entry[2]]) for entries in OBJECTS]
    perfect = _numbers(exact, kinds=KINDS, per_class=True)
    assert list(perfect)[:4] == ["coco/bbox_mAP", "coco/bbox_mAP_50", "coco/bbox_mAP_75", "coco/bbox_mAP_s"]
    assert {"coco/bbox_mAP/cell", "coco/bbox_mAP/dish", "coco/segm_mAP", "coco/segm_mAP/dish"} <= set(perfect)
    assert "coco/bbox_mAP_l" not in perfect, "no object is as large"
    assert all(value == pytest.approx(1.0) for value in perfect.values())
    nothing = _numbers([_found([])] * len(OBJECTS), kinds=KINDS, per_class=True)
    assert nothing.keys() == perfect.keys() and not any(nothing.values())


def test_one_class_missed_and_a_crowd_that_counts_for_nothing() -> None:
    found = [_found([e for e in entries if e[0] == 3 and not e[2]]) for entries in OBJECTS]
    found[3] = _found([OBJECTS[3][1], (3, [20, 20, 30, 30], 0)])  # the second one lies in the crowd
    numbers = _numbers(found, per_class=True)
    assert numbers["coco/bbox_mAP/cell"] == pytest.approx(1.0) and numbers["coco/bbox_mAP/dish"] == 0.0
    assert numbers["coco/bbox_mAP"] == pytest.approx(0.5)


def test_only_the_tested_images_and_known_labels_count() -> None:
    found = [_found([e for e in entries if not e[2]]) for entries in OBJECTS]
    assert _numbers(found, [1, 2])["coco/bbox_mAP"] == pytest.approx(1.0)
    found[1]["labels"][:] = 0  # the background
    assert _numbers(found, [1, 2])["coco/bbox_mAP"] == 0.0


def test_a_shifted_box_counts_below_its_overlap_only() -> None:
    objects = [[], [(8, [10, 12, 40, 40], 0)], [], []]
    found = [_found([]), _found([(8, [15, 12, 40, 40], 0)]), _found([]), _found([])]  # overlap 35/45 = 0.78
    metric = BoxMetric(_truth(objects), [0, 1, 2, 3], LABELS)
    numbers = metric.numbers([e for place in range(4) for e in metric.entries(place, found[place])])
    assert numbers["coco/bbox_mAP"] == pytest.approx(0.6) and numbers["coco/bbox_mAP_75"] == pytest.approx(1.0)


def test_the_same_numbers_as_mmdetection(tmp_path: Path) -> None:
    """Names and values of mmdetection's own metric, which rounds to three digits."""
    pytest.importorskip("mmdet", reason="mmdetection is an extra")
    import json

    from mmdet.evaluation import CocoMetric

    rng = np.random.default_rng(0)
    found = []
    for entries in OBJECTS:
        moved = [(c, [max(0, v + int(rng.integers(-4, 5))) for v in box], 0) for c, box, crowd in entries if not crowd]
        moved.append((3, [int(rng.integers(0, 30)), int(rng.integers(0, 30)), 20, 18], 0))
        found.append(_found(moved) | {"scores": torch.from_numpy(rng.random(len(moved))).float()})
    truth = _truth()
    objects = [entry | {"id": n + 1} for n, entry in enumerate(e for part in truth.objects for e in part)]
    categories = [{"id": number, "name": name} for number, name in truth.categories.items()]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": truth.images, "annotations": objects, "categories": categories}))
    metric = CocoMetric(ann_file=str(path), metric="bbox")
    metric.dataset_meta = {"classes": list(truth.categories.values())}
    for place, one in enumerate(found):
        sample = {name: one[name] for name in ("boxes", "scores")} | {"labels": one["labels"] - 1}
        sample["bboxes"] = sample.pop("boxes")
        image = truth.images[place]
        metric.process({}, [{"img_id": image["id"], "ori_shape": (SIZE, SIZE), "pred_instances": sample}])
    theirs = {name: value for name, value in metric.evaluate(size=len(found)).items() if value >= 0}
    ours = _numbers(found)
    assert ours.keys() == theirs.keys() and 0.05 < ours["coco/bbox_mAP"] < 0.95
    assert all(ours[name] == pytest.approx(value, abs=6e-4) for name, value in theirs.items())
