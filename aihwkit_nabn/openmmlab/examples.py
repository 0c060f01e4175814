"""Example pictures of a config's test set, see `aihwkit_nabn.evaluation.examples`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch import nn

from aihwkit_nabn.evaluation.examples import SCORE, Example, View
from aihwkit_nabn.evaluation.examples import write_examples as write
from aihwkit_nabn.results import Results


def write_examples(
    result: Results, model: nn.Module, arguments: Mapping[str, Any], dataset: Any, count: int, folder: Path
) -> Path:
    """Draw the first test images as the networks of a finished evaluation see them.

    The setting is the one that costs most without calibration, the method the best one there, the chip the first.

    `arguments` are those that `evaluate` was called with. The folder, which is returned, gets JPEG files and
    ``examples.json``, which names them.
    """
    samples = [dataset[index] for index in range(min(count, len(dataset)))]
    examples = []
    for sample in samples:
        data = sample["data_samples"]
        picture = Image.open(data.img_path).convert("RGB")
        examples.append(Example(name=Path(data.img_path).name, picture=picture, truth=view_of(data, truth=True)))
    classes = list(dataset.metainfo.get("classes") or ())
    return write(result, model, arguments, examples, functools.partial(predict, samples=samples), classes, folder)


def predict(model: nn.Module, samples: Sequence[Any], score: float = SCORE) -> list[View]:
    """Return what a network finds in samples of a test set, without boxes below a score."""
    network: Any = model
    with torch.no_grad():
        found = [network.test_step(pseudo_collate([sample]))[0].cpu() for sample in samples]
    return [view_of(one, truth=False, score=score) for one in found]


def view_of(sample: Any, *, truth: bool, score: float = SCORE) -> View:
    """Return what a data sample holds, of its labels or its predictions."""
    segments = getattr(sample, "gt_sem_seg" if truth else "pred_sem_seg", None)
    instances = getattr(sample, "gt_instances" if truth else "pred_instances", None)
    if segments is not None:
        return View(segments=segments.data.squeeze(0).cpu().numpy().astype(np.int64))
    if instances is None or "bboxes" not in instances:
        return View()
    if not truth:
        instances = instances[instances.scores > score]
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    return View(boxes=list(zip(boxes.tolist(), instances.labels.tolist(), strict=True)))
