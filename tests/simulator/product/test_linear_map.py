"""The mean of each output's inputs against the product with a matrix whose values are all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aihwkit_nabn.simulator.product.linear_map import LinearMap, TransposedMap


def conv(n: int, kind: type[LinearMap] = LinearMap, **given: Any) -> LinearMap:
    values: dict[str, Any] = {"kernel_size": (3,) * n, "stride": (1,) * n, "padding": (1,) * n, "dilation": (1,) * n}
    if kind is TransposedMap:
        values["output_padding"] = (0,) * n
    return kind(spatial_dims=n, **{**values, **given})


MAPS = {
    "1-d": (conv(1), (2, 4, 9)),
    "2-d": (conv(2), (2, 4, 6, 7)),
    "3-d": (conv(3), (2, 4, 4, 5, 3)),
    "no batch": (conv(2), (4, 6, 7)),
    "empty": (conv(2), (0, 4, 6, 7)),
    "uneven kernel, strides": (conv(2, kernel_size=(2, 5), stride=(2, 3), padding=(0, 2)), (2, 4, 6, 7)),
    "dilated groups": (conv(2, dilation=(2, 1), groups=2), (2, 4, 8, 7)),
    "same": (conv(2, kernel_size=(4, 3), padding="same"), (2, 4, 6, 7)),
    "valid": (conv(1, padding="valid"), (2, 4, 9)),
    "reflect": (conv(2, padding_mode="reflect"), (2, 4, 6, 7)),
    "circular groups": (conv(1, padding_mode="circular", groups=4), (2, 4, 9)),
    "transposed": (conv(2, TransposedMap, stride=(2, 3), output_padding=(1, 2)), (2, 4, 5, 4)),
    "one pixel": (conv(2, kernel_size=(1, 1), padding=(0, 0)), (2, 4, 6, 7)),
    "one pixel, no batch, strides": (conv(2, kernel_size=(1, 1), stride=(2, 3), padding=(1, 0)), (4, 6, 7)),
    "one pixel, transposed": (
        conv(2, TransposedMap, kernel_size=(1, 1), padding=(0, 0), stride=(2, 1), output_padding=(1, 0)),
        (2, 4, 5, 4),
    ),
    "transposed groups": (conv(1, TransposedMap, stride=(2,), dilation=(2,), groups=2), (2, 4, 7)),
}


@pytest.mark.parametrize("name", MAPS)
def test_is_the_product_with_equal_weights(name: str) -> None:
    linear_map, shape = MAPS[name]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n_inputs = x.shape[linear_map.channel_dim] // linear_map.groups * torch.Size(linear_map.kernel_size).numel()
    equal = torch.full((linear_map.groups, n_inputs), 1.0 / n_inputs, dtype=torch.float64)
    torch.testing.assert_close(linear_map.input_mean(x), linear_map.apply(x, equal, None))
    grouped = x.unflatten(linear_map.channel_dim, (linear_map.groups, -1)).movedim(linear_map.channel_dim, 0)
    means = [linear_map.window_mean(part) for part in grouped]  # of every group's first channel, of its second, ...
    torch.testing.assert_close(torch.stack(means).mean(0), linear_map.input_mean(x))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LinearMap().input_mean(x), x @ torch.full((5, 1), 0.2))


def test_its_work() -> None:
    """Additions over multiplications: counted by hand per output position."""
    assert LinearMap().input_mean_work(10, 64) == (64 + 1) / (10 * 64)
    assert conv(2).input_mean_work(16, 16 * 9) == (16 + 9) / (16 * 16 * 9)
    assert conv(2, groups=12).input_mean_work(12, 9) == (1 + 9) / 9
    assert conv(2, groups=4).input_mean_work(12, 2 * 9) == (2 + 9) / (3 * 2 * 9)
