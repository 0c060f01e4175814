"""Random tensors, the sampling that references share, and the comparison between types and devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

TYPES = [torch.float32, torch.float16, torch.bfloat16]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
each_precision = pytest.mark.parametrize(
    ("dtype", "device"),
    [(dtype, "cpu") for dtype in TYPES] + [pytest.param(dtype, "cuda", marks=needs_gpu) for dtype in TYPES],
    ids=str,
)
each_seed = pytest.mark.parametrize("seed", range(3))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def strided(x: Tensor) -> Tensor:
    """The same values, in every second place of a larger tensor."""
    return torch.stack([x, torch.full_like(x, torch.nan if x.is_floating_point() else -9)], -1)[..., 0]


def same(got: Tensor, expected: np.ndarray | Tensor) -> None:
    """Whether values agree to double precision."""
    torch.testing.assert_close(got.detach(), torch.as_tensor(expected), rtol=1e-10, atol=1e-12)


def weighting(out: Tensor) -> Tensor:
    """What outputs are multiplied with to make one number of them; the same in every type."""
    return (torch.arange(out.numel()) * 7 % 17 - 8).reshape(out.shape).to(out) / 8


def outputs_and_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What comes out, and the gradients of its weighted sum with respect to the inputs that have one."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    out = function(*leaves)
    if not out.requires_grad:
        return [out]
    found = torch.autograd.grad(out, [x for x in leaves if x.requires_grad], weighting(out), allow_unused=True)
    return [out.detach(), *(gradient for gradient in found if gradient is not None)]


def assert_precise(function: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype, device: str) -> None:
    """Whether outputs and gradients are those of double precision on the CPU, rounded once, and summed in single."""
    rounded = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    got = outputs_and_gradients(function, [x.to(device) for x in rounded])
    expected = outputs_and_gradients(function, [x.double() if x.is_floating_point() else x for x in rounded])
    for mine, exact in zip(got, expected, strict=True):
        assert mine.dtype == dtype and mine.device.type == device and exact.abs().max() > 0
        sums, unit = 1e-5 * float(exact.abs().max()), torch.finfo(dtype).eps
        torch.testing.assert_close(mine.cpu().double(), exact, rtol=0.51 * unit, atol=sums)


def between_pixels(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    """Each channel of ``[channels, height, width]`` at a point: a pixel counts by its nearness, none beyond the map."""
    rows, columns = (np.clip(1 - abs(np.arange(n) - at), 0, None) for n, at in zip(maps.shape[1:], (y, x), strict=True))
    return (maps * rows[:, None] * columns).sum((1, 2))


def within_edges(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    """The same, but up to one pixel beyond the map its edge continues."""
    height, width = maps.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(maps))
    return between_pixels(maps, min(max(y, 0), height - 1), min(max(x, 0), width - 1))
