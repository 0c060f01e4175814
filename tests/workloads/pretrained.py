"""Folders of tiny networks as transformers' ``save_pretrained`` writes them, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aihwkit_nabn.workloads import LoadSettings, Workload, load_workload

_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "layer_type": "basic"}
_ATTENTION = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 48}
_DETR = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_queries": 10, "decoder_layers": 2}
SIZE = 32
# Labels of classifiers, detectors and segmenters.
ANIMALS = {0: "circle", 1: "Square_2", 2: "none of them"}
SHAPES = {0: "N/A", 1: "triangle", 2: "circle", 3: "N/A", 4: "rectangle"}
PIXELS = {0: "background", 1: "circle", 2: "rectangle", 3: "triangle"}


def make(name: str, **given: Any) -> Any:
    """Return a tiny network, its statistics and its biases drawn at random too."""
    import transformers as t

    vit = {**_ATTENTION, "image_size": SIZE, "patch_size": 8}
    swin = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 3], "window_size": 4, "image_size": SIZE}
    makers: dict[str, Callable[[], Any]] = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**vit, **given)),
        "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**vit, **given)),
        "beit": lambda: t.BeitForImageClassification(t.BeitConfig(**vit, **given)),
        "swin": lambda: t.SwinForImageClassification(t.SwinConfig(**swin, **given)),
        "convnext": lambda: t.ConvNextForImageClassification(
            t.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], **given)
        ),
        "resnet": lambda: t.ResNetForImageClassification(t.ResNetConfig(**_BACKBONE, **given)),
        "segformer": lambda: t.SegformerForSemanticSegmentation(
            t.SegformerConfig(
                hidden_sizes=[8, 16, 20, 24],
                depths=[1, 1, 1, 1],
                num_attention_heads=[1, 2, 2, 2],
                decoder_hidden_size=16,
                **given,
            )
        ),
        "detr": lambda: t.DetrForObjectDetection(
            t.DetrConfig(
                backbone_config=t.ResNetConfig(**_BACKBONE, out_features=["stage4"]),
                use_timm_backbone=False,
                use_pretrained_backbone=False,
                backbone=None,
                encoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                **_DETR,
                **given,
            )
        ),
        "rt_detr": lambda: t.RTDetrForObjectDetection(
            t.RTDetrConfig(
                backbone_config=t.RTDetrResNetConfig(**_BACKBONE, out_features=["stage2", "stage3", "stage4"]),
                encoder_hidden_dim=32,
                encoder_in_channels=[12, 16, 20],
                encoder_attention_heads=2,
                decoder_in_channels=[32, 32, 32],
                decoder_attention_heads=2,
                decoder_n_points=2,
                num_denoising=4,
                **_DETR,
                **given,
            )
        ),
    }
    torch.manual_seed(0)
    network = makers[name]().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            std = 1 / parameter[0].numel() ** 0.5 if parameter.dim() >= 2 else 0.1
            parameter.copy_(std * torch.randn(parameter.shape) + (parameter if parameter.dim() < 2 else 0.0))
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network


def processor(network: nn.Module, **given: Any) -> Any:
    """Return the image processor that suits a network, for small images."""
    import transformers as t

    kind = type(network).__name__
    square = {"height": SIZE, "width": SIZE}
    if kind.startswith("RTDetr"):
        return t.RTDetrImageProcessor(**{"size": {"height": 64, "width": 64}, **given})
    if kind.startswith("Detr"):
        return t.DetrImageProcessor(**{"size": {"shortest_edge": 64, "longest_edge": 96}, **given})
    if kind.startswith("Segformer"):
        return t.SegformerImageProcessor(**{"size": {"height": 64, "width": 64}, **given})
    if kind.startswith("ConvNext"):
        return t.ConvNextImageProcessor(**{"size": {"shortest_edge": SIZE}, **given})
    return t.ViTImageProcessor(**{"size": square, **given})


def save(folder: Path, name: str, labels: dict[int, str] | int, **given: Any) -> str:
    """Write a tiny network and its image processor to a folder; return its path."""
    named = {"num_labels": labels} if isinstance(labels, int) else _named(labels)
    network = make(name, **named)
    network.save_pretrained(folder)
    processor(network, **given).save_pretrained(folder)
    return str(folder)


def _named(labels: dict[int, str]) -> dict[str, Any]:
    return {"id2label": labels, "label2id": {name: label for label, name in labels.items()}}


def load_folder(folder: Path | str, data: Path, *, batch: int | None = None, **given: Any) -> Workload:
    settings = LoadSettings(loader_workers=0, batch_size=batch)
    return load_workload(f"transformers:{folder}", settings, data=str(data), **given)
