"""Train the OpenMMLab demo's detector and segmenter with the upstream training tools and write their checkpoints.

The drawn shapes are generated, mmdetection's and mmsegmentation's own ``train.py`` run as they are, and what they learn
is reduced to the weights. A few minutes on one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from aihwkit_nabn.commands._run import run
from aihwkit_nabn.data.demo_configs import DEMO_CONFIGS, demo_config_path
from aihwkit_nabn.data.shapes import CLASSES, write_shapes
from aihwkit_nabn.errors import NabnError, missing_extra

PACKAGES = {"shapes_detector": "mmdet", "shapes_segmenter": "mmseg"}
app = typer.Typer(name="train_demo.py", add_completion=False, pretty_exceptions_enable=False)
CHECKPOINTS = Path(__file__).resolve().parents[1] / "aihwkit_nabn" / "data" / "checkpoints"


def upstream_train(package: str) -> Path:
    """Return the ``train.py`` that comes with an installed OpenMMLab package, or beside an editable one."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise missing_extra(package, "openmmlab")
    folder = Path(spec.origin).parent
    for script in (folder / ".mim" / "tools" / "train.py", folder.parent / "tools" / "train.py"):
        if script.is_file():
            return script
    raise NabnError(f"{package} in {folder} comes without tools/train.py; install it from a wheel or a checkout")


def weights_only(trained: Path, classes: tuple[str, ...]) -> dict[str, Any]:
    """Reduce a checkpoint of mmengine's to its weights and class names, which safe loading accepts."""
    import aihwkit_nabn.openmmlab  # noqa: F401  lets torch's safe loading read mmengine's checkpoints

    state = torch.load(trained, map_location="cpu", weights_only=True)["state_dict"]
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return {"state_dict": tensors, "meta": {"dataset_meta": {"classes": classes}, "made_by": "tools/train_demo.py"}}


@app.command()
def main(
    models: Annotated[list[str] | None, typer.Argument(help="Models to train; default: all.")] = None,
    work_dir: Annotated[Path, typer.Option(help="Data, logs and full checkpoints.")] = Path("work_dirs/demo"),
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = CHECKPOINTS,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs in place of the configs' own, for a quick trial.")
    ] = None,
) -> None:
    """Generate the shapes, train on them, and write the checkpoints the demo comes with."""
    work_dir = work_dir.resolve()
    environment = {**os.environ, "NABN_DATA": str(work_dir), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    write_shapes(work_dir / "shapes")
    for name in models or DEMO_CONFIGS:
        config = demo_config_path(name)
        script = upstream_train(PACKAGES[config.stem])
        folder = work_dir / config.stem
        command = [sys.executable, str(script), str(config), "--work-dir", str(folder)]
        if epochs is not None:
            command += ["--cfg-options", f"train_cfg.max_epochs={epochs}", "default_hooks.checkpoint.interval=1"]
        start = time.perf_counter()
        if subprocess.run(command, env=environment).returncode:
            raise NabnError(f"training {name} failed; its log is in {folder}")
        trained = Path((folder / "last_checkpoint").read_text(encoding="utf-8").strip())
        classes = CLASSES if config.stem == "shapes_detector" else ("background", *CLASSES)
        out.mkdir(parents=True, exist_ok=True)
        target = out / f"{config.stem}.pth"
        torch.save(weights_only(trained, classes), target)
        seconds = time.perf_counter() - start
        typer.echo(f"{name}: {seconds:.0f} s, wrote {target} ({target.stat().st_size / 1024:.0f} KiB)")


if __name__ == "__main__":
    raise SystemExit(run(app))
