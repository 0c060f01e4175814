"""Everything of mmengine, mmdetection and mmsegmentation that is changed at run time, and when each change can go.

Two things more are put in place of upstream's, by their own means: the operators of an mmcv that was not compiled
(`operators/finder.py`), and the iterations of a test on a chip (`iterations.py`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pickle
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aihwkit_nabn.data.weights import DAMAGED, PLAIN
from aihwkit_nabn.errors import NabnError, first_line


def allow_mmengine_checkpoints() -> None:
    """Let torch's safe loading read full mmengine checkpoints, without switching it off.

    Beside tensors these hold the training log: numpy numbers and mmengine's `HistoryBuffer`, plain data all. Where
    mmengine itself would fall back to unsafe loading for a file with anything else, that file is refused instead.
    Upstream: open-mmlab/mmengine#1655; its pull request #1650 switches safe loading off. Can go when mmengine allows
    its own classes and refuses others.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner import checkpoint as upstream

    # numpy 1.26 has a package of the later name, too, which holds nothing until it is imported.
    core: Any = np._core if int(np.__version__.partition(".")[0]) >= 2 else np.core  # type: ignore[attr-defined]
    numbers = (np.float64, np.float32, np.int64, np.int32, np.uint32, np.uint8, np.bool_)
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            core.multiarray._reconstruct,
            core.multiarray.scalar,
            np.ndarray,
            np.dtype,
            *PLAIN,
            *(type(np.dtype(kind)) for kind in numbers),
            # A HistoryBuffer stores its own statistics as bound methods, which pickle looks up with getattr.
            (_history_attribute, "builtins.getattr"),
        ]
    )
    if hasattr(upstream, "_safe_torch_load"):
        upstream._safe_torch_load = _load_safely
    else:  # OpenMMLab's own package calls torch.load where it reads files
        upstream.CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)


def _history_attribute(owner: Any, name: str) -> Any:
    from mmengine.logging.history_buffer import HistoryBuffer

    if not (isinstance(owner, HistoryBuffer) or owner is HistoryBuffer) or name.startswith("_"):
        raise pickle.UnpicklingError(f"attribute {name!r} of a {type(owner).__name__} must not be looked up")
    return getattr(owner, name)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint file; mmengine names what it loads from by this name."""
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{filename} can not be found.")
    return _load_safely(str(path), map_location)


def _load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    try:
        content = torch.load(file, map_location=map_location, weights_only=True)
    except DAMAGED as error:
        reason = first_line(error) if str(error) else "it ends too early"
        raise NabnError(f"checkpoint {file} is damaged or not a checkpoint: {reason}") from error
    except pickle.UnpicklingError as error:
        raise NabnError(
            f"checkpoint {file} is damaged or holds more than tensors and plain data, which could run code when read: "
            f"{first_line(error)}; if you trust it, allow its classes with torch.serialization.add_safe_globals"
        ) from error
    if not isinstance(content, dict):
        raise NabnError(f"checkpoint {file} must hold a state dict, got a {type(content).__name__}")
    return content


def find_mmseg_configs() -> None:
    """Let mmengine find ``mmseg::`` configs in the maintained fork.

    mmengine looks for them in a distribution named mmsegmentation, which the fork is not; by the name of the module it
    finds them. Nothing changes where upstream's package is installed, or none. Can go with a fork of mmengine that
    knows the fork of mmsegmentation.
    """
    try:
        importlib.metadata.version("mmsegmentation")
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec("mmseg") is not None:
            from mmengine.config import utils

            utils.MODULE2PACKAGE["mmseg"] = "mmseg"


def mend_ssd_head() -> None:
    """Give mmdet's `SSDHead` the attribute that its own prediction reads and its constructor forgets.

    Without it SSD and SSDLite can be trained but not tested, on a chip or off it. None means: plain softmax scores.
    Nothing is done where mmdet has not been imported. Open upstream as open-mmlab/mmdetection#11063, #11305 and #11780;
    can go when its pull request #11524 is in every release that is served.
    """
    heads = sys.modules.get("mmdet.models.dense_heads")
    SSDHead = getattr(heads, "SSDHead", None)
    if SSDHead is not None and not hasattr(SSDHead, "loss_cls"):
        SSDHead.loss_cls = None


def count_only_tested(loop: Any) -> None:
    """Let COCO's metrics look for the images that are tested, where the config has limited them.

    With ``test_dataloader.dataset.indices=N`` they would count every object in the annotation file's other images as
    missed. Can go when `CocoMetric` takes the images of the data set.
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
    score of 0, which meets no object. Other metrics stay as they are; calling it twice does nothing more. Upstream:
    open-mmlab/mmdetection#8907; can go when it reports zeros.
    """
    if not hasattr(metric, "_coco_api"):
        return

    def compute(original: Any, results: Any) -> Any:
        if results and not any(len(found["labels"]) for _, found in results):
            (truth, found), *others = results
            results = [(truth, found | _box_of_nothing(truth, "masks" in found)), *others]
        return original(results)

    _change(metric, "_nabn_without_boxes", compute)


def _change(metric: Any, mark: str, compute: Callable[[Any, Any], Any]) -> None:
    """Let a metric compute its numbers by ``compute(its own function, results)``, unless the mark says it does."""
    if not hasattr(metric, mark):
        metric.compute_metrics = partial(compute, metric.compute_metrics)
        setattr(metric, mark, True)


def _box_of_nothing(truth: dict[str, Any], with_mask: bool) -> dict[str, Any]:
    zero = np.zeros(1, dtype=np.float32)
    found: dict[str, Any] = {"bboxes": np.zeros((1, 4), dtype=np.float32), "scores": zero, "mask_scores": zero}
    found["labels"] = np.zeros(1, dtype=np.int64)
    if with_mask:
        from pycocotools.mask import encode

        found["masks"] = [encode(np.zeros((truth["height"], truth["width"]), dtype=np.uint8, order="F"))]
    return found


def report_classes(metric: Any) -> None:
    """Let one metric object of an evaluator report its main number for every class too.

    mmdetection's `CocoMetric` gives ``bbox_mAP/CLASS``, mmsegmentation's `IoUMetric` ``mIoU/CLASS`` in percent; other
    metrics stay as they are. Calling it twice does nothing more. Can go when both report classes as numbers in their
    results; today one has them in its log only.
    """
    if hasattr(metric, "classwise"):
        metric.classwise = True

        def compute(original: Any, results: Any) -> Any:
            return _renamed(original(results), f"{metric.metrics[-1]}_mAP")

    elif hasattr(metric, "total_area_to_metrics"):

        def compute(original: Any, results: Any) -> Any:
            return {**original(results), **_class_iou(results, metric.dataset_meta["classes"])}

    else:
        return
    _change(metric, "_nabn_classes", compute)


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
