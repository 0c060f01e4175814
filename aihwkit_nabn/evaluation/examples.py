"""Example pictures: what the digital network, the chip, and the calibrated chip see in the first test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import nn

from aihwkit_nabn.chip import set_read_noise_seed
from aihwkit_nabn.evaluation.methods import PLAIN, label_methods
from aihwkit_nabn.evaluation.protocol import EvaluationProtocol
from aihwkit_nabn.files import write_text
from aihwkit_nabn.results import Cell, Results
from aihwkit_nabn.seeding import derive_seed

SCORE = 0.4
"""Boxes below it are not drawn."""

_WIDTH = 480  # pixels of a drawn picture at most
_OPACITY = 0.6

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class View:
    """What is in an image, or was found in it: boxes or a class per pixel.

    Attributes:
        boxes: Left, top, right and bottom in pixels, and the place of each one's class; None: no boxes are known.
        segments: ``[H, W]`` places of classes, others for none; None: not known.
    """

    boxes: Sequence[tuple[Sequence[float], int]] | None = None
    segments: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A test image.

    Attributes:
        name: Of its file.
        picture: The image in RGB.
        truth: What is in it.
    """

    name: str
    picture: Image.Image
    truth: View


def write_examples(
    result: Results,
    model: nn.Module,
    arguments: Mapping[str, Any],
    examples: Sequence[Example],
    predict: Callable[[nn.Module], Sequence[View]],
    classes: Sequence[str],
    folder: Path,
) -> Path:
    """Draw test images as the networks of a finished evaluation see them.

    The setting is the one that costs most without calibration, the method the best one there, the chip the first.

    Args:
        result: What was measured.
        model: The digital model.
        arguments: What `evaluate` was called with.
        examples: The images.
        predict: Called with a model; returns what it finds in each of them.
        classes: Their names.
        folder: Gets JPEG files and ``examples.json``, which names them.

    Returns:
        The folder.
    """
    cells = result.cells()
    worst = min((c for c in cells if not c.calibrated), key=lambda c: c.estimate.mean)
    rivals = [c for c in cells if c.calibrated and c.record.scenario == worst.record.scenario]
    best: Cell | None = max(rivals, key=lambda c: c.estimate.mean, default=None)
    seen = [("ground truth", [example.truth for example in examples]), ("digital", predict(model))]
    seen += _on_chip(model, arguments, worst, best, predict)
    colors = class_colors(len(classes))
    images = []
    for number, example in enumerate(examples):
        panels = []
        for index, (title, views) in enumerate(seen):
            drawn = draw(example.picture, views[number], colors)
            if drawn is not None:
                file = folder / f"{number:02d}_{index}.jpg"
                folder.mkdir(parents=True, exist_ok=True)
                drawn.save(file, quality=80, optimize=True)
                panels.append({"title": title, "file": file.name})
        images.append({"name": example.name, "panels": panels})
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
    model: nn.Module,
    arguments: Mapping[str, Any],
    worst: Cell,
    best: Cell | None,
    predict: Callable[[nn.Module], Sequence[View]],
) -> list[tuple[str, Sequence[View]]]:
    scenario = next(s for s in arguments["scenarios"] if s.name == worst.record.scenario)
    sets, seed = arguments["calibration_batches"] or {}, arguments["seed"]
    protocol = EvaluationProtocol(
        model,
        seed=seed,
        forward_fn=arguments["forward_fn"],
        reference_forward_fn=arguments["reference_forward_fn"],
        exclude=arguments["exclude"],
        range_batches=sets.get(PLAIN),
    )
    analog = protocol.convert(scenario.rpu_config)
    protocol.program(analog, scenario, seed)  # of the first chip, whose record a cell holds
    set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
    seen = [("on the chip", predict(analog))]
    if best is not None:
        # By its label: one method may be there with several options.
        spec = next(s for s in label_methods(arguments["methods"]) if s.label == best.record.method)
        protocol.calibrate_with(analog, seed, spec.method, sets.get(str(spec.batches)), **spec.options)
        set_read_noise_seed(analog, derive_seed(seed, "evaluate"))
        seen.append((f"on the chip, {best.record.method}", predict(analog)))
    return seen


def class_colors(count: int) -> list[Color]:
    """Return a colour for each class: red, green and blue from 0 to 255."""
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    colors = [palette(index % palette.N) for index in range(count)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue, _ in colors]


def draw(picture: Image.Image, view: View, colors: Sequence[Color]) -> Image.Image | None:
    """Return the picture with boxes or classes drawn on it; None where the view has neither, or of another size."""
    if view.segments is not None:
        labels = view.segments
        if labels.shape != (picture.height, picture.width):
            return None
        known = (labels >= 0) & (labels < len(colors))
        table = np.asarray([*colors, (0, 0, 0)], dtype=np.float64)
        overlay = table[np.where(known, labels, len(colors))]
        opacity = np.where(known, _OPACITY, 0.0)[..., None]
        mixed = (1 - opacity) * np.asarray(picture, dtype=np.float64) + opacity * overlay
        return _scaled(Image.fromarray(mixed.round().astype(np.uint8)))
    if view.boxes is None:
        return None
    scale = min(1.0, _WIDTH / picture.width)
    drawn = _scaled(picture.copy())
    pen = ImageDraw.Draw(drawn)
    for box, label in view.boxes:
        x1, y1, x2, y2 = (value * scale for value in box)
        pen.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colors[label], width=2)
    return drawn


def _scaled(picture: Image.Image) -> Image.Image:
    if picture.width <= _WIDTH:
        return picture
    return picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
