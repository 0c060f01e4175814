"""Draw the pictures of docs/concepts.md: ``python tools/draw_concepts.py`` writes ``docs/images/concepts_*.png``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.classification import image_batches
from aihwkit_nabn.data.digits import load_demo_model, load_digits
from aihwkit_nabn.nn.layers import named_analog_layers

GREY, BLUE, ORANGE, PALE = "#777777", "#0072B2", "#D55E00", "#EEF3F8"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs/images")) -> None:
    """Draw all of them."""
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    for draw in (pipeline, distributions, layer):
        draw(out / f"concepts_{draw.__name__}.png")


def pipeline(path: Path) -> None:
    """Draw the way from the reference to a calibrated chip."""
    boxes = [
        ("reference", "the trained network,\nnever changed"),
        ("analog model", "weights on\n512 x 512 tiles"),
        ("chip", "one draw of the noise,\nat one age"),
        ("calibrated chip", "the same devices,\nactivations aligned"),
    ]
    steps = ["convert_to_\nnoise_aware", "program_chip\n(seed, time)", "calibrate\n(images, method)"]
    figure, axes = _sheet(9.6, 1.7, 9.6)
    for number, (title, text) in enumerate(boxes):
        _box(axes, 2.6 * number + 0.1, 0.25, 1.55, 1.2, title, text)
    for number, text in enumerate(steps):
        _arrow(axes, 2.6 * number + 1.7, 2.6 * number + 2.65, 0.85)
        axes.text(2.6 * number + 2.17, 1.0, text, ha="center", va="bottom", fontsize=7, family="monospace")
    axes.set_xlim(0, 9.6)
    _save(figure, path)


def layer(path: Path) -> None:
    """Draw what a value passes in one analog layer."""
    boxes = [
        ("DAC", "input range,\n8 bits"),
        ("tile", "weights + noise,\nread noise"),
        ("ADC", "output noise,\n8 bits"),
        ("sum", "of the tiles,\nscale"),
        ("alignment", "y = s x + b\nper channel"),
        ("BatchNorm", "trained | on-chip\nstatistics"),
    ]
    figure, axes = _sheet(9.6, 1.9, 9.6)
    for number, (title, text) in enumerate(boxes):
        calibrated = title in ("alignment", "BatchNorm")
        _box(axes, 1.6 * number + 0.05, 0.3, 1.3, 1.15, title, text, ORANGE if calibrated else BLUE)
        if number:
            _arrow(axes, 1.6 * number - 0.23, 1.6 * number + 0.03, 0.87)
    for start, end, text in ((0.05, 4.55, "on the chip"), (4.85, 9.35, "digital; orange: what calibration sets")):
        axes.plot([start, end], [1.62, 1.62], color=GREY, linewidth=1)
        axes.text((start + end) / 2, 1.68, text, ha="center", va="bottom", color=GREY, fontsize=9)
    axes.set_xlim(0, 9.6)
    axes.set_ylim(0.2, 2.0)
    _save(figure, path)


def distributions(path: Path) -> None:
    """Draw a channel's activations in three layers: digital, on a chip, on the calibrated chip."""
    model = load_demo_model()
    images = load_digits("train").images[:256]
    analog = nabn.convert_to_noise_aware(model, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    nabn.program_chip(analog, seed=0)
    names = list(named_analog_layers(analog))
    shown = [names[0], names[len(names) // 2], names[-2]]
    digital = _outputs(model, shown, images)
    chip = _outputs(analog, shown, images)
    nabn.calibrate(analog, image_batches(images, 64), method="paired", reference=model, progress=False)
    calibrated = _outputs(analog, shown, images)
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6), layout="constrained")
    for axis, name in zip(axes, shown, strict=True):
        channel = int(((chip[name].mean(1) - digital[name].mean(1)) / digital[name].std(1)).abs().argmax())
        values = [each[name][channel].numpy() for each in (digital, chip, calibrated)]
        bins = np.linspace(*np.quantile(np.concatenate(values), [0.002, 0.998]), 60)
        axis.hist(values[0], bins, density=True, color="#C9D8E6", edgecolor="#B8C7D6", linewidth=0.3, label="reference")
        for value, colour, label in zip(values[1:], (GREY, ORANGE), ("chip", "chip, paired"), strict=True):
            axis.hist(value, bins, density=True, histtype="step", color=colour, linewidth=1.6, label=label)
        axis.set_title(f"{name}, channel {channel}", fontsize=10)
        axis.set_yticks([])
        axis.set_xlabel("layer output")
    axes[0].set_ylabel("density")
    axes[-1].legend(frameon=False, fontsize=9)
    _save(figure, path)


def _outputs(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Return every output of the named layers, ``[channels, values]``."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, args, output: found.update({name: output.transpose(0, 1).flatten(1)})

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def _sheet(width: float, height: float, units: float) -> tuple[plt.Figure, Axes]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_xlim(0, units)
    axes.set_ylim(0.1, 1.65)
    axes.set_axis_off()
    return figure, axes


def _box(
    axes: Axes, x: float, y: float, width: float, height: float, title: str, text: str, colour: str = BLUE
) -> None:
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE, edgecolor=colour))
    axes.text(x + width / 2, y + height * 0.72, title, ha="center", va="center", weight="bold", fontsize=10)
    axes.text(x + width / 2, y + height * 0.32, text, ha="center", va="center", fontsize=8)


def _arrow(axes: Axes, start: float, end: float, y: float) -> None:
    axes.annotate("", (end, y), (start, y), arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.4})


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(run(app))
