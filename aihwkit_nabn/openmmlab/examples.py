"""Example pictures: what the digital network, the chip, and the calibrated chip see in the first test images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image, ImageDraw
from torch import nn

from aihwkit_nabn.chip import set_read_noise_seed
from aihwkit_nabn.evaluation.methods import PLAIN, label_methods
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.files import write_text
from aihwkit_nabn.results import Cell, Results
from aihwkit_nabn.seeding import derive_seed

_WIDTH = 480  # pixels of a drawn picture at most
SCORE = 0.4  # boxes below it are not drawn
_OPACITY = 0.6


def write_examples(
    result: Results, model: nn.Module, arguments: Mapping[str, Any], dataset: Any, count: int, folder: Path
) -> Path:
    """Draw the first test images as the networks of a finished evaluation see them.

    The setting is the one that costs most without calibration, the method the best one there, the chip the first.

    `arguments` are those that `evaluate` was called with. The folder, which is returned, gets JPEG files and
    ``examples.json``, which names them.
    """
    cells = result.cells()
    worst = min((c for c in cells if not c.calibrated), key=lambda c: c.estimate.mean)
    rivals = [c for c in cells if c.calibrated and c.record.scenario == worst.record.scenario]
    best: Cell | None = max(rivals, key=lambda c: c.estimate.mean, default=None)
    samples = [dataset[index] for index in range(min(count, len(dataset)))]
    seen = [("digital", predict(model, samples))]
    seen += _on_chip(model, arguments, worst, best, samples)
    classes = list(dataset.metainfo.get("classes") or ())
    colors = class_colors(len(classes))
    images = []
    for number, sample in enumerate(samples):
        data = sample["data_samples"]
        picture = Image.open(data.img_path).convert("RGB")
        views = [("ground truth", data, True), *((title, found[number], False) for title, found in seen)]
        panels = []
        for index, (title, view, truth) in enumerate(views):
            drawn = draw(picture, view, colors, truth=truth)
            if drawn is not None:
                file = folder / f"{number:02d}_{index}.jpg"
                folder.mkdir(parents=True, exist_ok=True)
                drawn.save(file, quality=80, optimize=True)
                panels.append({"title": title, "file": file.name})
        images.append({"name": Path(data.img_path).name, "panels": panels})
    content = {
        "scenario": worst.record.scenario,
        "chip_seed": worst.record.chip_seed,
        "method": None if best is None else best.record.method,
        "classes": [
            {"name": name, "color": f"#{r:02x}{g:02x}{b:02x}"} for name, (r, g, b) in zip(classes, colors, strict=True)
        ],
        "images": images,
    }
    write_text(folder / "examples.json", json.dumps(content, indent=1) + "\n")
    return folder


def _on_chip(
    model: nn.Module, arguments: Mapping[str, Any], worst: Cell, best: Cell | None, samples: list[Any]
) -> list[tuple[str, list[Any]]]:
    scenario = next(s for s in arguments["scenarios"] if s.name == worst.record.scenario)
    sets, seed = arguments["calibration_batches"] or {}, arguments["seed"]
    exclude = arguments["exclude"]
    protocol = EvaluationProtocol(
        model,
        seed=seed,
        forward_fn=arguments["forward_fn"],
        reference_forward_fn=arguments["reference_forward_fn"],
        exclude=(exclude,) if isinstance(exclude, str) else exclude,
        range_batches=sets.get(PLAIN),
    )
    analog = protocol.convert(scenario.rpu_config)
    protocol.program(analog, scenario, seed)  # of the first chip, whose record a cell holds
    set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
    seen = [("on the chip", predict(analog, samples))]
    if best is not None:
        # By its label: one method may be there with several options.
        spec = next(s for s in label_methods(arguments["methods"]) if s.label == best.record.method)
        protocol.calibrate_with(analog, seed, spec.method, sets.get(str(spec.batches)), **spec.options)
        set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
        seen.append((f"on the chip, {best.record.method}", predict(analog, samples)))
    return seen


def predict(model: nn.Module, samples: list[Any]) -> list[Any]:
    """Return what a network finds in samples of a test set, as data samples on the CPU."""
    network: Any = model
    with torch.no_grad():
        return [network.test_step(pseudo_collate([sample]))[0].cpu() for sample in samples]


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """Return a colour for each class: red, green and blue from 0 to 255."""
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    colors = [palette(index % palette.N) for index in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, _ in colors]


def draw(
    picture: Image.Image, view: Any, colors: list[tuple[int, int, int]], *, truth: bool, score: float = SCORE
) -> Image.Image | None:
    """Return the picture with boxes or classes drawn on it; None where the view holds neither.

    Args:
        picture: The image.
        view: A data sample.
        colors: One per class.
        truth: Whether the ground truth is drawn, not the prediction.
        score: Boxes below it are not drawn.
    """
    segments = getattr(view, "gt_sem_seg" if truth else "pred_sem_seg", None)
    instances = getattr(view, "gt_instances" if truth else "pred_instances", None)
    if segments is not None:
        labels = segments.data.squeeze(0).cpu().numpy().astype(np.int64)
        known = labels < len(colors)
        table = np.asarray([*colors, (0, 0, 0)], dtype=np.float64)
        overlay = table[np.where(known, labels, len(colors))]
        if labels.shape != (picture.height, picture.width):
            return None
        opacity = np.where(known, _OPACITY, 0.0)[..., None]
        mixed = (1 - opacity) * np.asarray(picture, dtype=np.float64) + opacity * overlay
        return _scaled(Image.fromarray(mixed.round().astype(np.uint8)))
    if instances is None or "bboxes" not in instances:
        return None
    if not truth:
        instances = instances[instances.scores > score]
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    scale = min(1.0, _WIDTH / picture.width)
    drawn = _scaled(picture.copy())
    pen = ImageDraw.Draw(drawn)
    for box, label in zip(boxes.tolist(), instances.labels.tolist(), strict=True):
        x1, y1, x2, y2 = (value * scale for value in box)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colors[label], width=2)
    return drawn


def _scaled(picture: Image.Image) -> Image.Image:
    if picture.width <= _WIDTH:
        return picture
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
