"""Small networks that calibration is tried on."""

from __future__ import annotations

import torch
from torch import nn


def deep(depth: int = 6) -> nn.Sequential:
    """Return a chain of convolutions with BatchNorm whose statistics are those of random images ``[n, 3, 8, 8]``."""
    torch.manual_seed(0)
    blocks = [m for _ in range(depth) for m in (nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(768, 5))
    for _ in range(10):
        net(torch.randn(32, 3, 8, 8))
    return net.eval()
