"""Which of timm's architectures go on tiles."""

from __future__ import annotations

import time
from typing import Any

import timm
import torch
from coverage_networks import NetworkCoverage, measure_network, random_images
from torch import Tensor

from aihwkit_nabn.workloads.timm import build_timm

SMALL, CLASSES = 96, 100
PREFIX = "timm:"

MODELS = tuple(
    f"{PREFIX}{name}"
    for name in (
        "resnet18 resnet50d seresnet50 skresnet18 resnest14d res2net50_26w_4s resnetv2_50x1_bit nf_resnet50 "
        "dm_nfnet_f0 eca_nfnet_l0 regnety_002 densenet121 vgg11_bn dla34 dpn68 hrnet_w18_small cspdarknet53 "
        "xception41 inception_v3 repvgg_a0 mobileone_s0 ghostnet_100 mobilenetv3_large_100 mobilenetv4_conv_small "
        "efficientnet_b0 tf_efficientnet_b0 tf_efficientnet_cc_b0_4e mixnet_s tf_mixnet_s rexnet_100 convnext_atto "
        "convnextv2_atto mambaout_femto poolformer_s12 fastvit_t8 repvit_m0_9 efficientvit_b0 efficientformer_l1 "
        "edgenext_xx_small mobilevit_xxs mobilevitv2_050 vit_tiny_patch16_224 deit3_small_patch16_224 "
        "beit_base_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p8_224 levit_128s "
        "swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 twins_pcpvt_small pvt_v2_b0 crossvit_tiny_240 "
        "maxvit_nano_rw_256 coatnet_nano_rw_224 botnet26t_256 focalnet_tiny_srf davit_tiny mixer_s32_224 "
        "gmlp_ti16_224 sequencer2d_s "
    ).split()
)


def measure(name: str, *, noise: str = "pcm", seed: int = 0) -> NetworkCoverage:
    """Build a model with random weights and measure it, see `measure_network`.

    Args:
        name: In `MODELS`.
        noise: Of the noisy chip.
        seed: Of weights, image and chip.

    Raises:
        NabnError: the model cannot be built or converted, or the analog one computes something else.
    """
    start = time.perf_counter()
    timm.layers.set_fused_attn(False)  # products that the counter sees
    digital = build_timm(name.removeprefix(PREFIX), model_args={"num_classes": CLASSES}, seed=seed)
    return measure_network(name, digital, _images(digital, seed), start=start, noise=noise, seed=seed)


def _images(model: Any, seed: int) -> Tensor:
    """Return two random images, small ones where the model takes them."""
    own = model.pretrained_cfg["input_size"][-1]
    for size in (SMALL, own):
        images = random_images(size, seed)
        try:
            with torch.no_grad():
                model(images)
        except Exception:  # each model has its own way of refusing a size
            if size == own:
                raise
        else:
            break
    return images
