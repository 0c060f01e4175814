"""Which of transformers' architectures go on tiles."""

from __future__ import annotations

import time
from typing import Any

import transformers
from coverage_networks import NetworkCoverage, measure_network, random_images

from aihwkit_nabn.seeding import private_rng
from aihwkit_nabn.workloads._transformers_files import with_plain_outputs

PREFIX = "transformers:"
_TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
_RESNET18 = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
_LEVELS = {"out_features": ["stage2", "stage3", "stage4"]}

# Class, what its configuration has beside the defaults, and the edge of the image.
_NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit tiny": ("ViTForImageClassification", _TINY, 224),
    "deit tiny": ("DeiTForImageClassification", _TINY, 224),
    "beit tiny": ("BeitForImageClassification", _TINY, 224),
    "dinov2 small": ("Dinov2ForImageClassification", {"hidden_size": 384, "num_attention_heads": 6}, 224),
    "swin tiny": ("SwinForImageClassification", {}, 224),
    "convnext tiny": ("ConvNextForImageClassification", {}, 96),
    "resnet18": ("ResNetForImageClassification", _RESNET18, 96),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {}, 96),
    "segformer b0": ("SegformerForSemanticSegmentation", {}, 128),
    "mobilevit small": ("MobileViTForSemanticSegmentation", {}, 128),
    "detr r18": (
        "DetrForObjectDetection",
        {"backbone_config": ("resnet", {**_RESNET18, "out_features": ["stage4"]})},
        128,
    ),
    "deformable_detr r18": (
        "DeformableDetrForObjectDetection",
        {"backbone_config": ("resnet", {**_RESNET18, **_LEVELS})},
        128,
    ),
    "rt_detr r18": (
        "RTDetrForObjectDetection",
        {
            "backbone_config": ("rt_detr_resnet", {**_RESNET18, **_LEVELS}),
            "encoder_in_channels": [128, 256, 512],
            "decoder_layers": 3,
            "hidden_expansion": 0.5,
        },
        128,
    ),
    "yolos tiny": ("YolosForObjectDetection", {**_TINY, "image_size": [128, 128], "num_detection_tokens": 100}, 128),
}
MODELS = tuple(f"{PREFIX}{name}" for name in _NETWORKS)


def measure(name: str, *, noise: str = "pcm", seed: int = 0) -> NetworkCoverage:
    """Build a network with random weights and measure it, see `measure_network`.

    Args:
        name: In `MODELS`.
        noise: Of the noisy chip.
        seed: Of weights, image and chip.

    Raises:
        NabnError: the network cannot be converted, or the analog one computes something else.
    """
    start = time.perf_counter()
    architecture, given, size = _NETWORKS[name.removeprefix(PREFIX)]
    kind = getattr(transformers, architecture)
    given = dict(given)
    if "backbone_config" in given:
        backbone, options = given["backbone_config"]
        given |= {"backbone_config": transformers.AutoConfig.for_model(backbone, **options), "use_timm_backbone": False}
    config = kind.config_class(**given, attn_implementation="eager")  # products that the counter sees
    with private_rng(seed, torch_only=False):
        digital = with_plain_outputs(kind(config))
    return measure_network(name, digital, random_images(size, seed), start=start, noise=noise, seed=seed)
