"""Small networks, the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def classifier(
    n_in: int = 3,
    n: int = 6,
    n_out: int = 4,
    size: int = 6,
    more: Callable[[], Iterable[nn.Module]] = tuple,
    **options: Any,
) -> nn.Sequential:
    """Return a convolution, BatchNorm, ReLU, `more`, and a linear layer for maps of `size` squared, in eval mode."""
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(n_in, n, 3, **options), nn.BatchNorm2d(n), nn.ReLU(), *more(), nn.Flatten()).eval()
    return front.append(nn.Linear(front(torch.zeros(1, n_in, size, size)).shape[1], n_out)).eval()


def deep(depth: int = 6) -> nn.Sequential:
    """Return a chain of convolutions with BatchNorm whose statistics are those of random images ``[n, 3, 8, 8]``."""
    torch.manual_seed(0)
    blocks = [m for _ in range(depth) for m in (nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(768, 5))
    for _ in range(10):
        net(torch.randn(32, 3, 8, 8))
    return net.eval()


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, n: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(n, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n)
        self.two, self.norm2 = nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n)
        self.skip = nn.Conv2d(n, n, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm2(self.two(self.norm1(self.one(x)).relu())) + self.skip(x)).relu()


def labelled_batches(n: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Return images ``[8, 2, 6, 6]`` of three classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 8, 2, 6, 6, generator=generator)
    return [(x, torch.randint(0, 3, (8,), generator=generator)) for x in images]
