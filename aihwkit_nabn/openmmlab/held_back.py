"""A config that is tested on images of its train set, those left out that are calibrated with."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from aihwkit_nabn.data.image_folder import choose
from aihwkit_nabn.evaluation.methods import AUGMENTED, PLAIN
from aihwkit_nabn.openmmlab.batches import CalibrationImages, with_test_pipeline
from aihwkit_nabn.openmmlab.config import register_modules, scope_of
from aihwkit_nabn.seeding import derive_seed


def measured_on_train_set(config: Config, count: int | None, n_calibrated: int, seed: int) -> Config | None:
    """Return a copy of a config whose test set is part of its train set, with labels, at test time's pipeline.

    Args:
        config: Has a train set and a test set.
        count: Number of images, at most; None: all that are left.
        n_calibrated: Number of calibration images, which are left out.
        seed: Of the calibration images.

    Returns:
        The config; None where no image is left, or where it cannot be told which files the labels are in.
    """
    register_modules(scope_of(config))
    config = copy.deepcopy(config)
    tested, trained = config.test_dataloader.dataset, config.train_dataloader.dataset
    while "dataset" in trained:  # repeated, or several images mixed
        trained = trained.dataset
    if "datasets" in trained or "pipeline" not in tested or not _measures_on(config, trained):
        return None
    dataset = with_test_pipeline(trained.to_dict(), tested.pipeline)
    dataset.pop("indices", None)
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        built = DATASETS.build(copy.deepcopy(dataset))
    used: set[str] = set()
    for name in (PLAIN, AUGMENTED):
        images = CalibrationImages(config, name, n_calibrated, 1, seed)
        used |= _files(images.dataset, images.indices)
    order = choose(len(built), None, derive_seed(seed, "held back"))
    left = [number for number in order if not _files(built, [number]) & used][:count]
    if not left:
        return None
    config.test_dataloader.dataset = dataset | {"indices": sorted(left)}
    return config


def _measures_on(config: Config, trained: Any) -> bool:
    """Let the metrics read the labels of the train set; return whether they can."""
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if "seg_prefix" in evaluator:  # of panoptic segmentation, a folder of images of labels
            return False
        if "ann_file" in evaluator:
            if "ann_file" not in trained:
                return False
            evaluator.ann_file = os.path.join(trained.get("data_root") or "", trained.ann_file)
    return True


def _files(dataset: Any, numbers: Collection[int]) -> set[str]:
    return {str(dataset.get_data_info(number)["img_path"]) for number in numbers}
