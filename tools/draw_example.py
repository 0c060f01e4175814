"""Draw one test image of a detection or segmentation config: ground truth, digital, on a chip, on the calibrated chip.

Run: ``python tools/draw_example.py CONFIG CHECKPOINT --noise gaussian:sigma=0.06 --image 3 --out example.png``
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import typer
from matplotlib.patches import Patch
from PIL import Image

import aihwkit_nabn as nabn
import aihwkit_nabn.openmmlab
from aihwkit_nabn.commands._run import run
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.evaluation.examples import SCORE, View, class_colors, draw
from aihwkit_nabn.evaluation.methods import method_spec
from aihwkit_nabn.openmmlab.batches import CalibrationImages, calibration_forward
from aihwkit_nabn.openmmlab.config import build_digital, load_config, parse_cfg_options
from aihwkit_nabn.openmmlab.examples import predict, view_of
from aihwkit_nabn.simulator.config.presets import parse_preset


def draw_panels(image: Image.Image, views: list[tuple[str, View]], classes: list[str], out: Path) -> None:
    """Write the figure: one panel per view, the ground truth first."""
    colors = class_colors(len(classes))
    figure, axes = plt.subplots(1, len(views), figsize=(3.4 * len(views), 3.3), layout="constrained")
    for axis, (title, view) in zip(axes, views, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
        axis.imshow(draw(image, view, colors) or image)
    patches = [Patch(color=[c / 255 for c in color], label=name) for color, name in zip(colors, classes, strict=True)]
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
    image: Annotated[int, typer.Option(min=0, help="Number of the test image.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the chip.")] = 0,
    score: Annotated[float, typer.Option(help="Boxes below this score are left out.")] = SCORE,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("example.png"),
    cfg_options: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, as upstream's tools take it.")] = None,
) -> None:
    """Draw one test image: ground truth, digital, on a chip, on the calibrated chip."""
    cfg = load_config(config, parse_cfg_options(cfg_options or []))
    model = build_digital(cfg, checkpoint)
    from mmengine.registry import DATASETS

    dataset = DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": False})
    if image >= len(dataset):
        raise NabnError(f"image must be below {len(dataset)}, the size of the test set, got {image}")
    sample = dataset[image]
    analog = nabn.convert_to_noise_aware(model, parse_preset(noise))
    nabn.program_chip(analog, seed, time)
    views = [("ground truth", view_of(sample["data_samples"], truth=True))]
    views += [("digital", *predict(model, [sample], score)), ("on the chip", *predict(analog, [sample], score))]
    images = CalibrationImages(cfg, str(method_spec(method).batches or "plain"), max_samples, None, seed)
    nabn.calibrate(analog, images, method, reference=model, forward_fn=calibration_forward)
    views.append(("on the chip, calibrated", *predict(analog, [sample], score)))
    shown = Image.open(sample["data_samples"].img_path).convert("RGB")
    draw_panels(shown, views, list(dataset.metainfo["classes"]), out)
    typer.echo(f"written to {out}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    raise SystemExit(run(app))
