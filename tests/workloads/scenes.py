"""Small data sets of drawn shapes, for detection and segmentation, and detectors on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from aihwkit_nabn.data.shapes import write_shapes
from aihwkit_nabn.workloads import LoadSettings, Workload, load_workload

SSD = "ssdlite320_mobilenet_v3_large"
RCNN = "fasterrcnn_mobilenet_v3_large_320_fpn"


def draw_coco(root: Path, *, n_train: int = 4, n_val: int = 3, change: Callable[[Any], Any] | None = None) -> Path:
    """Draw shapes in COCO's own layout, its files with `change` applied, images of two sizes."""
    write_shapes(root, n_train=n_train, n_val=n_val)
    (root / "annotations").mkdir()
    for part in ("train", "val"):
        content = json.loads((root / f"{part}.json").read_text())
        (root / f"{part}.json").unlink()
        if part == "val":
            first = content["images"][0]
            with Image.open(root / part / first["file_name"]) as image:
                wide = Image.new("RGB", (120, 96))
                wide.paste(image, (0, 0))
            wide.save(root / part / first["file_name"])
            first["width"] = 120
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        content = content if change is None else change(content)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return root


def draw_masks(root: Path, *, n_train: int = 4, n_val: int = 3) -> Path:
    """Draw shapes as ``images/{train,val}`` and ``masks/{train,val}``."""
    write_shapes(root / "drawn", n_train=n_train, n_val=n_val)
    for part in ("train", "val"):
        for name, source in (("images", part), ("masks", f"{part}_masks")):
            (root / name).mkdir(exist_ok=True)
            (root / "drawn" / source).rename(root / name / part)
    shutil.rmtree(root / "drawn")
    return root


def settled(model: Any, size: int = 64) -> Any:
    """Return a detector or segmenter with BatchNorm statistics that fit; the signal dies out without.

    Its scores then differ from place to place, so that a comparison of them can fail.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    generator = torch.Generator().manual_seed(5)
    model.train()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 0.5
            norm.weight.uniform_(0.7, 1.3, generator=generator)
            norm.bias.normal_(0.0, 0.2, generator=generator)
        for _ in range(6):
            features = model.backbone(torch.randn(8, 3, size, size, generator=generator))
            if hasattr(model, "head"):
                model.head(list(features.values()))
            elif hasattr(model, "classifier"):
                model.classifier(features if hasattr(model.classifier, "cbr") else features["out"])
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return model.eval()


def load_drawn(data: Path, name: str = SSD, *, test_images: int | None = None, seed: int = 0, **given: Any) -> Workload:
    """Return one of torchvision's detectors on drawn shapes; small images, random weights where nothing is given."""
    settings = LoadSettings(seed=seed, test_images=test_images, loader_workers=0)
    options = {"checkpoint": "random", "data": str(data), "image_size": 64, **given}
    return load_workload(f"torchvision:{name}", settings, **{k: v for k, v in options.items() if v is not None})


def save_state(path: Path, model: nn.Module) -> str:
    """Write a network's state dict; return the file as text."""
    torch.save(model.state_dict(), path)
    return str(path)
