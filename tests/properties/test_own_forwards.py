"""Any layer that prepares its input and calls the plain operation in any geometry is the same on tiles."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import NoiseAwareOwnForward
from tests.chips import tiled
from tests.properties.test_properties import anything

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def own_forward(kind: type[Any], pads: list[int], geometry: dict[str, Any], crop: int) -> type[Any]:
    """A subclass that pads, applies its weight in a geometry of the call's own, and goes on with the output."""

    class Own(kind):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, pads)
            operation = getattr(F, kind.__name__.replace("ConvTranspose", "conv_transpose").lower())
            out = operation(x, self.weight, self.bias, groups=self.groups, **geometry)
            return out.tanh()[..., crop:]

    return Own


@st.composite
def layers(draw: Any) -> tuple[nn.Module, Tensor]:
    n = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 2]))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(n)]
    per_dim = st.one_of(st.integers(1, 2), st.lists(st.integers(1, 2), min_size=n, max_size=n).map(tuple))
    stride, dilation = draw(per_dim), draw(per_dim)
    geometry = {"stride": stride, "dilation": dilation, "padding": draw(st.integers(0, 1))}
    if transposed:
        geometry["padding"] = 0
        geometry["output_padding"] = draw(st.integers(0, 1)) if stride == 2 else 0
    pads = [draw(st.integers(0, 3)) for _ in range(2 * n)]
    kind = own_forward((TRANSPOSED if transposed else CONV)[n - 1], pads, geometry, draw(st.integers(0, 1)))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = kind(*channels, kernel, groups=groups, bias=draw(st.booleans())).eval()
    return layer, torch.randn(draw(st.integers(1, 2)), channels[0], *(draw(st.integers(5, 8)) for _ in range(n)))


@anything
@given(layers(), st.sampled_from([(512, 512), (5, 2)]))
@torch.no_grad()
def test_a_chip_without_noise_computes_what_the_layer_does(
    case: tuple[nn.Module, Tensor], tiles: tuple[int, int]
) -> None:
    layer, x = case
    analog = nabn.convert_to_noise_aware(nn.Sequential(layer), tiled("gaussian:sigma=0", *tiles))
    assert isinstance(analog[0], NoiseAwareOwnForward)
    nabn.program_chip(analog, seed=0)
    expected = layer(x)
    assert analog(x).shape == expected.shape
    for again in (analog, analog[0].to_digital(analog[0])):
        assert (again(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
