"""Pooling of regions against loops over bins and samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab.operators import regions as pieces
from aihwkit_nabn.openmmlab.operators import rois as ours
from tests.openmmlab.operators.helpers import (
    assert_precise,
    each_precision,
    each_seed,
    normal,
    same,
    strided,
    uniform,
    within_edges,
)

SIZE = (2, 3)
FEW = [0, 3, 5, 6, 7, 8]  # enough for gradients, which take a pass per number


def regions(seed, inverted=True):
    """Of two images of 28 x 36 pixels, their maps a quarter of that: some reach beyond, some have no area."""
    boxes = uniform(12, 5, seed=seed)
    boxes[:, 0] = torch.arange(12) % 2
    boxes[:, 1:3] = boxes[:, 1:3] * 44 - 10
    boxes[:, 3:] = boxes[:, 1:3] + boxes[:, 3:] * 30
    boxes[1, 1:] += 100
    boxes[2, 1:] = torch.tensor([-400.1, -300.2, 500.3, 200.4])
    boxes[3, 3:] = boxes[3, 1:3]
    boxes[4, 4] = boxes[4, 2]
    if inverted:
        boxes[5] = boxes[5, [0, 3, 4, 1, 2]]
        boxes[6] = boxes[6, [0, 3, 2, 1, 4]]
    return boxes


def pooled(x, boxes, scale, ratio, aligned, reduce, moves=None):
    """Mean or largest of the samples in every bin; `moves`: x before y, in pixels of the map."""
    x, boxes = x.numpy(), boxes.numpy()
    out = np.zeros((len(boxes), x.shape[1], *SIZE))
    for (n, i, j), _ in np.ndenumerate(out[:, 0]):
        left, top, right, bottom = boxes[n, 1:] * scale - (0.5 if aligned else 0)
        height, width = bottom - top, right - left
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        if moves is not None:
            left, top = left + moves[n, 0, i, j] * width, top + moves[n, 1, i, j] * height
        rows, columns = ratio or math.ceil(height / SIZE[0]), ratio or math.ceil(width / SIZE[1])
        places = [
            (top + height / SIZE[0] * (i + (a + 0.5) / rows), left + width / SIZE[1] * (j + (b + 0.5) / columns))
            for a in range(rows)
            for b in range(columns)
        ]
        if places:
            out[n, :, i, j] = reduce([within_edges(x[int(boxes[n, 0])], *place) for place in places], 0)
    return out


@each_seed
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(seed, aligned, ratio, mode, monkeypatch):
    x, boxes = normal(2, 3, 7, 9, seed=seed), regions(seed)
    expected = pooled(x, boxes, 0.25, ratio, aligned, np.mean if mode == "avg" else np.max)
    same(ops.roi_align(strided(x), strided(boxes), SIZE, 0.25, ratio, mode, aligned), expected)
    monkeypatch.setattr(pieces, "PIECE", 1)  # region by region
    same(ops.RoIAlign(SIZE, 0.25, ratio, mode, aligned)(x.requires_grad_()[:], boxes), expected)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_gradients_of_roi_align(aligned, ratio, mode):
    boxes, x = regions(3)[FEW], normal(2, 1, 6, 7, seed=1)
    pool = ops.RoIAlign(SIZE, 0.25, ratio, mode, aligned)
    assert torch.autograd.gradcheck(lambda x: pool(x, boxes), x.requires_grad_())


def test_where_the_largest_was_taken():
    x, boxes = normal(2, 3, 7, 9), regions(0)
    out, y, z = (torch.full((12, 3, *SIZE), torch.nan, dtype=torch.float64) for _ in range(3))
    ours.roi_align_forward(
        x,
        boxes,
        out,
        y,
        z,
        aligned_height=2,
        aligned_width=3,
        spatial_scale=0.25,
        sampling_ratio=0,
        pool_mode=0,
        aligned=True,
    )
    for (n, c, i, j), value in np.ndenumerate(out.numpy()):
        place = float(y[n, c, i, j]), float(z[n, c, i, j])
        assert value == pytest.approx(within_edges(x[int(boxes[n, 0])].numpy(), *place)[c]) or place == (-1, -1)
    nothing = (y == -1).all((1, 2, 3))
    assert nothing.tolist() == [n in (3, 4, 5, 6) for n in range(12)] and not out[nothing].any()


def touched(start, end, bins, size):
    """For each bin the pixels that it touches."""
    edges = [start + b * (end - start) / bins for b in range(bins + 1)]
    return [[p for p in range(size) if math.floor(edges[b]) <= p < math.ceil(edges[b + 1])] for b in range(bins)]


def pool_by_hand(x, boxes, scale):
    x, boxes = x.numpy(), boxes.numpy()
    out = np.zeros((len(boxes), x.shape[1], *SIZE))
    for n, box in enumerate(boxes):
        start, end = box[[2, 1]] * scale, (box[[4, 3]] + 1) * scale
        if (end <= start).any():
            continue
        rows, columns = map(touched, start, end, SIZE, x.shape[2:])
        for i, j in np.ndindex(SIZE):
            if rows[i] and columns[j]:
                out[n, :, i, j] = x[int(box[0])][:, rows[i]][:, :, columns[j]].max((1, 2))
    return out


@each_seed
@pytest.mark.parametrize("scale", [0.25, 0.3])
def test_roi_pool(seed, scale, monkeypatch):
    x, boxes = normal(2, 3, 7, 9, seed=seed) - 3, regions(seed)  # negative: an empty bin's zero is no maximum
    expected = pool_by_hand(x, boxes, scale)
    same(ops.roi_pool(strided(x), strided(boxes), SIZE, scale), expected)
    monkeypatch.setattr(pieces, "PIECE", 1)
    same(ops.RoIPool(SIZE, scale)(x.requires_grad_()[:], boxes), expected)
    few = x[:, :1].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.roi_pool(x, boxes[FEW], SIZE, scale), few)


@each_seed
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("moved", [True, False])
def test_deform_roi_pool(seed, ratio, moved, monkeypatch):
    x, boxes = normal(2, 3, 7, 9, seed=seed), regions(seed)
    offset = normal(12, 2, *SIZE, seed=seed + 7) if moved else None
    moves = None if offset is None else 0.3 * offset.numpy()
    expected = pooled(x, boxes, 0.25, ratio, True, np.mean, moves)
    same(ops.deform_roi_pool(strided(x), strided(boxes), offset, SIZE, 0.25, ratio, 0.3), expected)
    monkeypatch.setattr(pieces, "PIECE", 1)
    same(ops.DeformRoIPool(SIZE, 0.25, ratio, 0.3)(x.requires_grad_()[:], boxes, offset), expected)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradients_of_deform_roi_pool(ratio):
    boxes, offset = regions(1)[FEW], normal(len(FEW), 2, *SIZE, seed=3)
    pool = ops.DeformRoIPool(SIZE, 0.25, ratio, 0.1)
    x = normal(2, 1, 6, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, offset: pool(x, boxes, offset), (x, offset.requires_grad_()))
    assert torch.autograd.gradcheck(lambda x: pool(x, boxes), x)


POOLS = {
    "align": ops.RoIAlign(SIZE, 0.25, 2),
    "align dense": ops.RoIAlign(SIZE, 0.25, 0, aligned=False),
    "align max": ops.RoIAlign(SIZE, 0.25, 0, "max"),
    "pool": ops.RoIPool(SIZE, 0.25),
    "deform": ops.DeformRoIPool(SIZE, 0.25, 2),
    "deform dense": ops.DeformRoIPool(SIZE, 0.25, 0),
}


@each_precision
@pytest.mark.parametrize("name", POOLS)
def test_precision(name, dtype, device):
    x, boxes, pool = normal(2, 3, 7, 9, seed=1), regions(1), POOLS[name]
    if name.startswith("deform"):
        assert_precise(pool, [x, boxes, normal(12, 2, *SIZE, seed=3)], dtype, device)
    elif name == "align max" and dtype != torch.float32:
        # mmcv keeps the places of the maxima in the input's type, so the gradient is theirs, not the exact one.
        assert_precise(lambda x, boxes: pool(x, boxes).detach(), [x, boxes], dtype, device)
    else:
        assert_precise(pool, [x, boxes], dtype, device)


BARREN = {
    "no image": [],
    "none": [],
    "inverted": [[0.0, 30.0, 20.0, 3.0, 4.0], [0.0, 30.0, 3.0, 4.0, 20.0]],
    "outside": [[0.0, 300.0, 300.0, 340.0, 340.0], [0.0, -90.0, 4.0, -70.0, 9.0]],
    "flat": [[0.0, 4.0, 4.0, 4.0, 9.0]],
}
FULL_ALL_THE_SAME = {  # with a number of samples, with a least size, or with the last pixel inclusive
    "align": ["inverted", "flat"],
    "align dense": ["inverted", "flat"],
    "deform": ["inverted", "flat"],
    "pool": ["flat"],
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("which", BARREN)
def test_nothing_in_the_regions(name, which):
    boxes, pool = BARREN[which], POOLS[name]
    rois, x = torch.tensor(boxes).reshape(-1, 5), torch.ones(0 if which == "no image" else 1, 3, 7, 9)
    x.requires_grad_()
    inputs = [x, rois]
    if name.startswith("deform"):
        inputs.append(torch.zeros(len(boxes), 2, *SIZE, requires_grad=True))
    out = pool(*inputs)
    out.sum().backward()
    assert out.shape == (len(boxes), 3, *SIZE)
    for input in inputs:
        assert not input.requires_grad or not input.numel() or input.grad.isfinite().all()
    if which in FULL_ALL_THE_SAME.get(name, []):
        assert (out == 1).all()
    else:
        assert not out.any() and not x.grad.any()


@pytest.mark.parametrize("name", POOLS)
def test_what_is_not_a_number_does_not_reach_other_regions(name):
    x, boxes = normal(2, 3, 7, 9).float(), regions(0, inverted=False).float()
    boxes[:, 0] = 0
    clean = POOLS[name](x, boxes)
    x[1] = torch.nan
    assert torch.equal(POOLS[name](x, boxes), clean)
    x[0, :, -1, -1] = torch.inf  # the pixel nearest to region 1, which is outside
    assert torch.equal(POOLS[name](x, boxes)[1], torch.zeros(3, *SIZE))


@pytest.mark.parametrize("name", ["align", "align max", "pool", "deform"])
def test_whole_numbers_and_other_types_for_regions(name):
    x, boxes = normal(2, 3, 7, 9).float(), regions(0).round()
    expected = POOLS[name](x, boxes.float())
    for dtype in (torch.long, torch.int32, torch.float64):
        assert torch.equal(POOLS[name](x, boxes.to(dtype)), expected)
