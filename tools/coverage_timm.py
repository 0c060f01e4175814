"""Which of timm's architectures go on tiles: their share of the multiplications, and how far the scores differ."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import timm
import torch
from coverage_models import LARGEST_ERROR, largest_error, randomize
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aihwkit_nabn.chip import program_chip
from aihwkit_nabn.nn import convert_to_noise_aware
from aihwkit_nabn.nn.attention import split_attention
from aihwkit_nabn.simulator import parse_preset
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


@dataclass(frozen=True, kw_only=True)
class TimmCoverage:
    """One row of timm's table.

    Attributes:
        model: Its name in `MODELS`.
        size: Edge of the image.
        layers: Layers on tiles.
        tiles: Their tiles.
        share: Share of the multiplications, in matrix products and convolutions, that tiles do, 0 to 1.
        error: Largest error of the analog model before noise, relative to the largest score.
        predicts: Whether a noisy chip gives finite scores.
        digital: Kinds of the layers with matrices that stay digital.
        problem: What went wrong, or empty.
        seconds: How long it took.
    """

    HEADINGS: ClassVar = (
        "model",
        "image",
        "analog layers",
        "tiles",
        "multiplications on tiles",
        "largest error",
        "noisy chip predicts",
        "layers left digital",
    )

    model: str
    size: int = 0
    layers: int = 0
    tiles: int = 0
    share: float = 0.0
    error: float = math.nan
    predicts: bool = False
    digital: Sequence[str] = ()
    problem: str = ""
    seconds: float = 0.0

    @property
    def passes(self) -> bool:
        """Whether it computes the same on tiles."""
        return self.error < LARGEST_ERROR and self.predicts and not self.problem

    @property
    def cells(self) -> tuple[str, ...]:
        """What its row says."""
        if self.problem:
            return (self.model, *[""] * 5, "failed", "")
        numbers = (f"{self.size}", f"{self.layers}", f"{self.tiles}", f"{self.share:.1%}", f"{self.error:.1e}")
        return (self.model, *numbers, "yes" if self.predicts else "no", ", ".join(self.digital))


def measure(name: str, *, noise: str = "pcm", seed: int = 0) -> TimmCoverage:
    """Build a model with random weights, convert and verify it, compare it with the digital one, predict with a chip.

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
    digital.requires_grad_(False)  # the counter's hooks refuse parameters that are passed on as inputs
    randomize(digital, seed)
    images = _images(digital, seed)
    analog: Any = convert_to_noise_aware(digital, parse_preset(noise), example_inputs=images)
    report = analog.conversion_report
    with torch.no_grad():
        error = largest_error(analog(images), digital(images))
        share = share_of_multiplications(digital, {entry.name for entry in report.converted}, images)
        program_chip(analog, seed=seed, t_inference=86_400.0)
        predicts = bool(analog(images).isfinite().all())
    return TimmCoverage(
        model=name,
        size=images.shape[-1],
        layers=len(report.converted),
        tiles=sum(entry.n_tiles for entry in report.converted),
        share=share,
        error=error,
        predicts=predicts,
        digital=sorted({entry.kind for entry in (*report.kept_digital, *report.refused) if entry.n_weights}),
        seconds=time.perf_counter() - start,
    )


def share_of_multiplications(model: nn.Module, layers: set[str], images: torch.Tensor) -> float:
    """Return the share of a model's multiplications that are done in some of its layers.

    Those of matrix products and convolutions are counted, products of two activations (attention) among them.

    Args:
        model: The digital model.
        layers: Names of the layers, as the analog model has them.
        images: What it is run on.
    """
    counter = FlopCounterMode(display=False, depth=None)
    # oneDNN computes a recurrent layer in one call, and the counter sees no product in it.
    with torch.backends.mkldnn.flags(enabled=False), split_attention(model) as split, counter:
        split(images)
    counts = {name.partition(".")[2]: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    return sum(counts.get(name, 0) for name in layers) / counter.get_total_flops()


def _images(model: Any, seed: int) -> torch.Tensor:
    """Return two random images, small ones where the model takes them."""
    own = model.pretrained_cfg["input_size"][-1]
    for size in (SMALL, own):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
        try:
            with torch.no_grad():
                model(images)
        except Exception:  # each model has its own way of refusing a size
            if size == own:
                raise
        else:
            break
    return images
