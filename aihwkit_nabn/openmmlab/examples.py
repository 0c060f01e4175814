"""Example pictures: what the digital network, the chip, and the calibrated chip see in the first test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image, ImageDraw
from torch import nn

from aihwkit_nabn.calibration import calibrate
from aihwkit_nabn.calibration.input_ranges import calibrate_input_ranges
from aihwkit_nabn.chip import program_chip, set_read_noise_seed
from aihwkit_nabn.evaluation.methods import PLAIN, label_methods
from aihwkit_nabn.files import write_text
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.input_ranges import ranged_layers
from aihwkit_nabn.openmmlab.batches import calibration_forward, reference_forward
from aihwkit_nabn.results import Cell
from aihwkit_nabn.seeding import derive_seed, isolated_rng

_WIDTH = 480  # pixels of a drawn picture at most
_SCORE = 0.4  # boxes below it are not drawn
_OPACITY = 0.6


def write_examples(loop: Any, model: nn.Module, folder: Path) -> Path:
    """Draw the first test images as the networks of a finished `AnalogTestLoop` see them.

    The setting is the one that costs most without calibration, the method the best one there, the chip the first.

    Args:
        loop: With its result.
        model: The digital model.
        folder: Gets JPEG files and ``examples.json``, which names them.

    Returns:
        The folder.
    """
    cells = loop.result.cells()
    worst = min((c for c in cells if not c.calibrated), key=lambda c: c.estimate.mean)
    rivals = [c for c in cells if c.calibrated and c.record.scenario == worst.record.scenario]
    best: Cell | None = max(rivals, key=lambda c: c.estimate.mean, default=None)
    dataset = loop.dataloader.dataset
    samples = [dataset[index] for index in range(min(loop.examples, len(dataset)))]
    seen = [("digital", _predict(model, samples))]
    seen += _on_chip(loop, model, worst, best, samples)
    classes = list(dataset.metainfo.get("classes") or ())
    colors = _colors(len(classes))
    images = []
    for number, sample in enumerate(samples):
        data = sample["data_samples"]
        picture = Image.open(data.img_path).convert("RGB")
        views = [("ground truth", data, True), *((title, found[number], False) for title, found in seen)]
        panels = []
        for index, (title, view, truth) in enumerate(views):
            drawn = _draw(picture, view, colors, truth=truth)
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
    loop: Any, model: nn.Module, worst: Cell, best: Cell | None, samples: list[Any]
) -> list[tuple[str, list[Any]]]:
    scenario = next(s for s in loop.scenarios if s.name == worst.record.scenario)
    arguments = loop.arguments()
    sets = arguments["calibration_batches"] or {}
    analog = convert_to_noise_aware(model, scenario.rpu_config, exclude=arguments["exclude"])
    if ranged_layers(analog):
        with isolated_rng(derive_seed(loop.seed, "calibration")):
            calibrate_input_ranges(analog, sets[PLAIN], forward_fn=calibration_forward)
    seed = loop.seed  # of the first chip, whose record a cell holds
    program_chip(analog, seed, float(scenario.t_inference))
    set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
    seen = [("on the chip", _predict(analog, samples))]
    if best is not None:
        # By its label: one method may be there with several options.
        spec = next(s for s in label_methods(loop.methods) if s.label == best.record.method)
        set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
        with isolated_rng(derive_seed(loop.seed, "calibration")):
            calibrate(
                analog,
                None if spec.batches is None else sets[spec.batches],
                method=spec.method,
                reference=model,
                forward_fn=calibration_forward,
                reference_forward_fn=reference_forward,
                progress=False,
                **spec.options,
            )
        set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
        seen.append((f"on the chip, {best.record.method}", _predict(analog, samples)))
    return seen


def _predict(model: nn.Module, samples: list[Any]) -> list[Any]:
    network: Any = model
    with torch.no_grad():
        return [network.test_step(pseudo_collate([sample]))[0].cpu() for sample in samples]


def _colors(count: int) -> list[tuple[int, int, int]]:
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    colors = [palette(index % palette.N) for index in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, _ in colors]


def _draw(picture: Image.Image, view: Any, colors: list[tuple[int, int, int]], *, truth: bool) -> Image.Image | None:
    """Return the picture with boxes or classes drawn on it; None where the view holds neither."""
    drawn = picture.copy()
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
        drawn = Image.fromarray(mixed.round().astype(np.uint8))
        return _scaled(drawn)
    if instances is None or "bboxes" not in instances:
        return None
    if not truth:
        instances = instances[instances.scores > _SCORE]
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
    scale = min(1.0, _WIDTH / drawn.width)
    drawn = _scaled(drawn)
    pen = ImageDraw.Draw(drawn)
    for box, label in zip(boxes.tolist(), instances.labels.tolist(), strict=True):
        x1, y1, x2, y2 = (value * scale for value in box)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colors[label], width=2)
    return drawn


def _scaled(picture: Image.Image) -> Image.Image:
    if picture.width <= _WIDTH:
        return picture
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
