"""Differences between tensors, and between whatever models return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference in parts of the largest value; NaN and infinite values must be the same ones."""
    got, expected = _plain(got), _plain(expected)
    if expected.numel() == 0 or got.shape != expected.shape:
        return 0.0 if got.shape == expected.shape else float("inf")
    same = (got == expected) | (got.isnan() & expected.isnan())
    apart = (got - expected).abs().masked_fill(same, 0.0)
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    off = float(apart.max())
    return off / scale if scale else (0.0 if off == 0.0 else float("inf"))


def _plain(value: Tensor) -> Tensor:
    value = value.detach()
    if value.is_quantized:
        value = value.dequantize()
    if value.layout is not torch.strided:
        value = value.to_dense()
    return (torch.view_as_real(value) if value.is_complex() else value).double()


def leaves(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors inside a result: of containers, and of objects such as OpenMMLab's data samples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part, depth)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from leaves(part, depth)
    elif depth < 3 and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
        for part in vars(value).values():
            yield from leaves(part, depth + 1)
