"""Multi-scale deformable attention against loops over queries, heads, levels and points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

from tests.openmmlab.operators.helpers import (
    assert_precise,
    between_pixels,
    each_precision,
    each_seed,
    needs_gpu,
    normal,
    same,
    strided,
    uniform,
)

LEVELS = {"one": [(3, 4)], "three": [(4, 3), (2, 2), (1, 5)], "point": [(1, 1)]}


def make(levels, seed, batch=2, queries=3, heads=2, points=2, channels=3):
    """Values, places (some outside) and weights, and the sizes of the levels with where each begins."""
    sizes = torch.tensor(LEVELS[levels])
    n = len(sizes)
    # Away from the middles of pixels, where the slope jumps; in pixels, then in shares of the map.
    cells = (uniform(batch, queries, heads, n, points, 2, seed=seed) * 2 - 0.5) * sizes.flip(1)[:, None]
    cells = cells.floor() + 0.1 + 0.8 * uniform(*cells.shape, seed=seed + 1)
    places = (cells + 0.5) / sizes.flip(1)[:, None]
    areas = sizes.prod(1)
    values = normal(batch, int(areas.sum()), heads, channels, seed=seed + 2)
    weights = uniform(batch, queries, heads, n, points, seed=seed + 3)
    return [values, places, weights], [sizes, areas.cumsum(0) - areas]


def attention(where, step=64):
    return lambda values, places, weights: MultiScaleDeformableAttnFunction.apply(
        values, *(t.to(values.device) for t in where), places, weights, step
    )


def attended(values, places, weights, sizes):
    values, places, weights = values.numpy(), places.numpy(), weights.numpy()
    batch, queries, heads, levels, points, _ = places.shape
    channels, begin = values.shape[3], 0
    out = np.zeros((batch, queries, heads, channels))
    for level, (height, width) in enumerate(sizes.tolist()):
        maps = values[:, begin : begin + height * width].reshape(batch, height, width, heads, channels)
        begin += height * width
        for n, q, h, p in np.ndindex(batch, queries, heads, points):
            x, y = places[n, q, h, level, p]
            sample = between_pixels(maps[n, :, :, h].transpose(2, 0, 1), y * height - 0.5, x * width - 0.5)
            out[n, q, h] += weights[n, q, h, level, p] * sample
    return out.reshape(batch, queries, heads * channels)


@each_seed
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_attention(levels, batch, seed):
    inputs, where = make(levels, seed, batch)
    same(attention(where, 1)(*(strided(x) for x in inputs)), attended(*inputs, where[0]))


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients(levels):
    inputs, where = make(levels, 5)
    assert torch.autograd.gradcheck(attention(where), [x.requires_grad_() for x in inputs])


@each_precision
@pytest.mark.parametrize("levels", LEVELS)
def test_precision(levels, dtype, device):
    inputs, where = make(levels, 1)
    assert_precise(attention(where), inputs, dtype, device)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_attend(batch, queries):
    inputs, where = make("three", 0, batch, queries)
    out = attention(where)(*(x.requires_grad_() for x in inputs))
    assert out.shape == (batch, queries, 6)
    out.sum().backward()
    assert not inputs[0].grad.any()


def test_a_place_at_infinity_counts_nothing():
    (values, places, weights), where = make("one", 0)
    expected = attended(values, places + 1e3 * (torch.arange(2) == 0)[:, None], weights, where[0])
    places[..., 0, :] = 1e6
    same(attention(where)(values, places, weights), expected)


@needs_gpu
def test_mmcvs_layer_takes_the_operator_on_a_gpu_and_torch_on_the_cpu():
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(embed_dims=8, num_heads=2, num_levels=3, num_points=2, dropout=0.0).eval()
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    _, (sizes, starts) = make("three", 0)
    query, value = normal(4, 2, 8).float(), normal(int(sizes.prod(1).sum()), 2, 8, seed=1).float()
    keywords = {"reference_points": uniform(2, 4, 3, 2).float(), "spatial_shapes": sizes, "level_start_index": starts}
    expected = layer(query, value=value, **keywords)
    got = layer.cuda()(query.cuda(), value=value.cuda(), **{k: v.cuda() for k, v in keywords.items()})
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5)
