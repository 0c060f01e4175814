"""A small ConvNeXt (torchvision's) on the digits: depthwise convolutions with LayerNorm."""

from __future__ import annotations

from torch import nn
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig

from networks._base import NETWORKS, Network, NetworkKind, Options
from networks._digits import Enlarged, load_digits_network

NAME = "convnext_digits"


def build() -> nn.Module:
    """Return the untrained network: two stages of two blocks."""
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    return Enlarged(ConvNeXt(stages, num_classes=10), 32)


def load(options: Options) -> Network:
    """Return the network."""
    return load_digits_network(NAME, build, options, epochs=20)


NETWORKS.register(NAME)(NetworkKind(require=lambda options: None, load=load))
