"""A small ConvNeXt (torchvision's) on the digits: depthwise convolutions with LayerNorm."""

from __future__ import annotations

from torch import nn
from torchvision.models import ConvNeXt
from torchvision.models.convnext import CNBlockConfig

from aihwkit_nabn.workloads import Workload
from networks._base import NETWORKS, NetworkKind, Options
from networks._digits import REQUEST, Enlarged, load_digits_network

NAME = "convnext_digits"


def build() -> nn.Module:
    """Return the untrained network: two stages of two blocks."""
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    # With so few blocks they need not begin as identities, which is what makes deep ones train.
    return Enlarged(ConvNeXt(stages, num_classes=10, layer_scale=1.0), 32)


def load(options: Options) -> Workload:
    """Return the network."""
    return load_digits_network(NAME, build, options, epochs=50, learning_rate=4e-3)


NETWORKS.register(NAME)(NetworkKind(require=lambda options: None, load=load, request=REQUEST))
