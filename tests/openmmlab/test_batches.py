"""Calibration images need no label files, however the pipeline names the transforms that read them."""

from __future__ import annotations

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import mmdet.datasets.transforms as mmdet_transforms
import mmseg.datasets.transforms as mmseg_transforms

from aihwkit_nabn.openmmlab.batches import CalibrationImages, _test_pipeline


@pytest.mark.parametrize(
    "kind",
    ["LoadAnnotations", "mmseg.LoadAnnotations", mmseg_transforms.LoadAnnotations, "mmseg.LoadBiomedicalAnnotation"],
)
def test_segmentors_images_come_without_their_label_files(kind, segmentor, tmp_path) -> None:
    cfg = segmentor.cfg(tmp_path)
    steps = [{"type": "LoadImageFromFile"}, {"type": kind}, {"type": "PackSegInputs"}]
    cfg.test_dataloader.dataset.pipeline = steps
    cfg.train_dataloader.dataset.data_prefix.seg_map_path = "nowhere"
    batches = list(CalibrationImages(cfg, "plain", 3, 2, 0))
    assert [len(batch["inputs"]) for batch in batches] == [2, 1]


@pytest.mark.parametrize(
    "kind",
    ["LoadPanopticAnnotations", "mmdet.LoadProposals", mmdet_transforms.LoadAnnotations, "mmdet.FilterAnnotations"],
)
def test_what_reads_labels_is_left_out(kind, detector) -> None:
    cfg = detector.cfg()
    steps = [{"type": "mmdet.LoadImageFromFile"}, {"type": kind}, {"type": "mmdet.PackDetInputs"}]
    cfg.test_dataloader.dataset.pipeline = steps
    assert [step["type"] for step in _test_pipeline(cfg)] == ["mmdet.LoadImageFromFile", "mmdet.PackDetInputs"]


def test_images_that_are_mixed_are_not_when_the_wrapper_is_a_class(detector) -> None:
    from mmdet.datasets import MultiImageMixDataset

    cfg = detector.cfg()
    inner = cfg.train_dataloader.dataset.to_dict()
    cfg.train_dataloader.dataset = {"type": MultiImageMixDataset, "dataset": inner, "pipeline": [{"type": "Mosaic"}]}
    images = CalibrationImages(cfg, "plain", 2, 2, 0)
    assert type(images.dataset).__name__ == "CocoDataset" and len(next(iter(images))["inputs"]) == 2
