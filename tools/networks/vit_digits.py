"""A small vision transformer (torchvision's) on the digits."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

from aihwkit_nabn.workloads import Workload
from networks._base import NETWORKS, NetworkKind, Options
from networks._digits import REQUEST, Enlarged, load_digits_network

NAME = "vit_digits"


def build() -> nn.Module:
    """Return the untrained network: sixteen patches, four blocks, four heads."""
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )
    nn.init.trunc_normal_(network.heads.head.weight, std=0.02)  # torchvision's is all zeros
    return Enlarged(network, 32)


def load(options: Options) -> Workload:
    """Return the network."""
    return load_digits_network(NAME, build, options, epochs=60, learning_rate=2e-3)


NETWORKS.register(NAME)(NetworkKind(require=lambda options: None, load=load, request=REQUEST))
