"""The compiled alignment against torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aihwkit_nabn import native
from aihwkit_nabn.nn.alignment import align

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"no compiled alignment: {native.why_not()}")

SHAPES = [(1, 4, 1), (3, 4, 7), (2, 4, 5, 9), (5, 12, 40, 41), (2, 4, 2, 3, 5), (2, 4, 300, 301), (700, 4, 3, 3)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_equal_to_torch(shape: tuple[int, ...], groups: int | None, both_ways: Callable[..., list[Tensor]]) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator)
    scale, offset, gain = torch.randn(3, shape[1], generator=generator)
    mean = None if groups is None else torch.randn(shape[0], groups, *shape[2:], generator=generator)
    given: list[Tensor] = []

    def aligned() -> Tensor:
        given.append(x.clone())
        return align(given[-1], scale, offset, gain, mean=mean, channel_dim=1 - x.dim(), overwrite=True)

    found = both_ways(aligned)
    assert found[0] is given[0]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_goes_to_torch() -> None:
    """Other types, layouts and layers, gradients, nothing there: nothing is overwritten that must not be."""
    scale, offset = torch.randn(2, 4)
    for x in (
        torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 4, 3, 5).double(),
        torch.randn(2, 4, 3, 10)[..., ::2],
        torch.randn(4, 3, 5),
        torch.randn(0, 4, 3, 5),
        torch.randn(2, 4, 0, 5),
    ):
        kept = x.clone()
        expected = x * scale.to(x).view(-1, 1, 1) + offset.to(x).view(-1, 1, 1)
        with torch.no_grad():
            torch.testing.assert_close(align(x, scale, offset, channel_dim=-3, overwrite=True), expected)
        torch.testing.assert_close(align(kept.clone(), scale, offset, channel_dim=-3), expected)
    x = torch.randn(2, 4, 3, 5, requires_grad=True)
    with torch.no_grad():
        kept = x.clone()
    align(x, scale, offset, channel_dim=-3, overwrite=True).sum().backward()
    assert torch.equal(x, kept) and x.grad is not None
