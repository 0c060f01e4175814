"""Random small networks for property tests: any mix of the layers that go on tiles, shared and nested modules."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

SIZE = 9


@st.composite
def convolutions(draw: Any, n_in: int) -> nn.Conv2d:
    """A 2-d convolution that keeps at least one position of a map of `SIZE`."""
    groups = draw(st.sampled_from([g for g in (1, 2, 3, n_in) if n_in % g == 0]))
    n_out = groups * draw(st.integers(1, 6))
    kernel = draw(st.sampled_from([1, 2, 3, (1, 3)]))
    dilation = draw(st.sampled_from([1, 2]))
    mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    return nn.Conv2d(
        n_in,
        n_out,
        kernel,
        stride=draw(st.sampled_from([1, 2])),
        padding=draw(st.sampled_from([1, 2])) if mode == "zeros" else 1,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )


@st.composite
def networks(draw: Any) -> nn.Sequential:
    """A classifier of maps ``[batch, 3, SIZE, SIZE]``, in eval mode, with trained-looking BatchNorm statistics."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layers: list[nn.Module] = []
    n = 3
    for _ in range(draw(st.integers(1, 3))):
        conv = draw(convolutions(n))
        n = conv.out_channels
        block: list[nn.Module] = [conv]
        if draw(st.booleans()):
            block.append(nn.BatchNorm2d(n, affine=draw(st.booleans())))
        block.append(nn.ReLU())
        if draw(st.booleans()):
            shared = nn.Conv2d(n, n, 1)
            block += [shared, nn.Tanh(), shared]
        layers += [nn.Sequential(*block)] if draw(st.booleans()) else block
        layers.append(nn.AdaptiveAvgPool2d(SIZE))  # room for the next kernel
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * n, draw(st.integers(1, 5)))]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


@st.composite
def batches(draw: Any) -> list[Tensor]:
    """One to three batches of different sizes, four samples at least."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    sizes[0] += 3
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return [torch.randn(size, 3, SIZE, SIZE, generator=generator) for size in sizes]
