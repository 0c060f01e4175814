"""Draw one test image of a detection or segmentation config: ground truth, digital, on a chip, on the calibrated chip.

Run: ``python tools/draw_example.py CONFIG CHECKPOINT --noise gaussian:sigma=0.06 --image 3 --out example.png``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from matplotlib.patches import Patch, Rectangle
from torch import nn

import aihwkit_nabn as nabn
import aihwkit_nabn.openmmlab
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.methods import method_spec
from aihwkit_nabn.openmmlab.batches import CalibrationImages, calibration_forward
from aihwkit_nabn.openmmlab.config import build_digital, load_config, parse_cfg_options, scope_of
from aihwkit_nabn.simulator.config.presets import parse_preset


def predictions(model: nn.Module, analog: nn.Module, sample: Any, calibrated: Any) -> list[tuple[str, Any]]:
    """Return a title and the predicted data sample of the digital model, the chip, and the calibrated chip."""
    network: Any = model
    chip: Any = analog
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    with torch.no_grad():
        found = [("digital", network.test_step(batch)[0]), ("on the chip", chip.test_step(batch)[0])]
        calibrated()
        return [*found, ("on the chip, calibrated", chip.test_step(batch)[0])]


def draw_boxes(axis: Any, boxes: np.ndarray, labels: np.ndarray, colors: Any) -> None:
    """Draw boxes ``[n, 4]`` (x1, y1, x2, y2) in their classes' colours."""
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.4, edgecolor=colors(label)))


def draw(
    scope: str, image: np.ndarray, truth: Any, found: list[tuple[str, Any]], classes: list[str], score: float, out: Path
) -> None:
    """Write the figure: one panel each for the ground truth and every prediction."""
    colors = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20")
    figure, axes = plt.subplots(1, 1 + len(found), figsize=(3.4 * (1 + len(found)), 3.3), layout="constrained")
    for axis, (title, sample) in zip(axes, [("ground truth", truth), *found], strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
        axis.imshow(image)
        if scope == "mmdet":
            instances = sample.gt_instances if sample is truth else sample.pred_instances
            if sample is not truth:
                instances = instances[instances.scores > score]
            boxes = getattr(instances.bboxes, "tensor", instances.bboxes)
            draw_boxes(axis, np.asarray(boxes), np.asarray(instances.labels), colors)
        else:
            labels = (sample.gt_sem_seg if sample is truth else sample.pred_sem_seg).data.squeeze(0).numpy()
            overlay = colors(labels)
            overlay[..., 3] = np.where(labels < len(classes), 0.65, 0.0)
            axis.imshow(overlay)
    patches = [Patch(color=colors(i), label=name) for i, name in enumerate(classes)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(classes), 11), fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(
    config: Annotated[str, typer.Argument(help="Config of mmdetection or mmsegmentation.")],
    checkpoint: Annotated[str, typer.Argument(help="Its trained weights.")],
    noise: Annotated[str, typer.Option(help="Noise preset.")] = "gaussian:sigma=0.06",
    time: Annotated[str, typer.Option(help="Time after programming.")] = "0s",
    method: Annotated[str, typer.Option(help="Calibration method.")] = "paired",
    max_samples: Annotated[int, typer.Option(min=1, help="Calibration images.")] = 48,
    image: Annotated[int, typer.Option(min=0, help="Which test image.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The chip.")] = 0,
    score: Annotated[float, typer.Option(help="Boxes below this score are left out.")] = 0.4,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("example.png"),
    cfg_options: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, as upstream has it.")] = None,
) -> None:
    """Draw one test image: ground truth, digital, on a chip, on the calibrated chip."""
    cfg = load_config(config, parse_cfg_options(cfg_options or []))
    model = build_digital(cfg, checkpoint)
    scope = scope_of(cfg)
    from mmengine.registry import DATASETS

    dataset = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": False})
    if image >= len(dataset):
        raise NabnError(f"image must be below {len(dataset)}, the size of the test set, got {image}")
    sample = dataset[image]
    analog = nabn.convert_to_noise_aware(model, parse_preset(noise))
    nabn.program_chip(analog, seed, time)
    spec = method_spec(method)

    def calibrated() -> None:
        images = CalibrationImages(cfg, str(spec.batches or "plain"), max_samples, None, seed)
        nabn.calibrate(analog, images, method, reference=model, forward_fn=calibration_forward)

    shown = plt.imread(sample["data_samples"].img_path)
    found = predictions(model, analog, sample, calibrated)
    draw(scope, shown, sample["data_samples"], found, list(dataset.metainfo["classes"]), score, out)
    typer.echo(f"written to {out}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    raise SystemExit(run(app))
