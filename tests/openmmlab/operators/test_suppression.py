"""Suppression of boxes and lines against loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import each_seed, needs_gpu, normal, strided, uniform

line_nms = operators.line_nms_forward  # mmcv's own function adds nothing, and only its fork has it
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def boxes_and_scores(seed, n=23):
    """Boxes that overlap much, among them empty, inverted and far ones, and twins."""
    boxes = uniform(n, 4, seed=seed) * 20
    boxes[:, 2:] = boxes[:, :2] + uniform(n, 2, seed=seed + 50) * 12
    boxes[1, 2:] = boxes[1, :2]
    boxes[2] = boxes[2, [2, 3, 0, 1]]
    boxes[3] = boxes[4] = boxes[0]
    boxes[5] += 1e6
    return boxes, torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double() / n


def iou(a, b, offset=0):
    width, height = (max(0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + offset) for i in (0, 1))
    union = sum((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)) - width * height
    return width * height / union if union else math.nan


def kept_by_hand(boxes, scores, threshold, offset):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if not any(iou(boxes[j], boxes[i], offset) > threshold for j in kept):
            kept.append(i)
    return kept


@each_seed
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.7, 1.0])
def test_nms_keeps_what_no_better_box_overlaps(seed, offset, threshold):
    boxes, scores = boxes_and_scores(seed)
    dets, kept = ops.nms(strided(boxes), strided(scores), threshold, offset=offset)
    assert kept.tolist() == kept_by_hand(boxes.tolist(), scores.tolist(), threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_nms_in_every_type(dtype, device):
    boxes, scores = (x.to(dtype) for x in boxes_and_scores(1))
    dets, kept = ops.nms(boxes.to(device).requires_grad_(), scores.to(device), 0.4)
    assert dets.dtype == dtype and kept.dtype == torch.long and kept.device.type == device
    assert kept.tolist() == kept_by_hand(boxes.tolist(), scores.tolist(), 0.4, 0)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.7])
def test_a_box_that_overlaps_by_the_very_threshold_stays(threshold):
    # 0.3 and 0.6 in single precision are more than in double.
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, round(10 * threshold), 1]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.1]), threshold)[1].tolist() == [0, 1]
    assert ops.nms(boxes, torch.tensor([0.9, 0.1]), threshold - 1e-6)[1].tolist() == [0]


def test_one_of_equal_boxes_stays():
    boxes, scores = torch.tensor([[1.0, 2, 4, 9]]).repeat(40, 1), torch.full((40,), 0.5)
    assert len(ops.nms(boxes, scores, 0.9)[1]) == len(ops.soft_nms(boxes, scores, method="naive")[1]) == 1
    (group,) = ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.9)
    assert sorted(group.tolist()) == list(range(40))


def test_nms_options_of_mmcv():
    boxes, scores = boxes_and_scores(2)
    labels = torch.arange(len(boxes)) % 3
    kept = ops.nms(boxes, scores, 0.4, score_threshold=0.3, max_num=4)[1]
    good = (scores > 0.3).nonzero()[:, 0]
    by_hand = kept_by_hand(boxes[good].tolist(), scores[good].tolist(), 0.4, 0)[:4]
    assert kept.tolist() == good[by_hand].tolist()
    boxes[5] -= 1e6 + 3  # class offsets of a million pixels would round
    batched = ops.batched_nms(boxes, scores, labels, {"type": "nms", "iou_threshold": 0.4})[1]
    each = [(labels == k).nonzero()[:, 0] for k in range(3)]
    apart = [i[kept_by_hand(boxes[i].tolist(), scores[i].tolist(), 0.4, 0)] for i in each]
    assert sorted(batched.tolist()) == sorted(torch.cat(apart).tolist())


def test_scores_that_are_not_numbers_and_types_that_mix():
    boxes, scores = boxes_and_scores(0)
    scores[9] = torch.nan
    assert ops.nms(boxes, scores, 0.4)[1].tolist() == kept_by_hand(
        boxes.tolist(), torch.where(scores.isnan(), 2.0, scores).tolist(), 0.4, 0
    )
    assert 9 in ops.soft_nms(boxes, scores, method="linear")[1]
    whole = boxes.round().long()
    expected = kept_by_hand(whole.tolist(), scores.nan_to_num(0.01).tolist(), 0.4, 0)
    assert ops.nms(whole, scores.nan_to_num(0.01), 0.4)[1].tolist() == expected
    assert ops.nms(whole.float(), scores.nan_to_num(0.01), 0.4)[1].tolist() == expected
    assert ops.nms(boxes.numpy(), scores.nan_to_num(0.01).numpy(), 0.4)[1].dtype == np.int64


def soft_by_hand(boxes, scores, threshold, sigma, least, method, offset):
    left, out = {i: [*box, score] for i, (box, score) in enumerate(zip(boxes, scores, strict=True))}, []
    while left:
        best = max(left, key=lambda i: left[i][4])
        out.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(out[-1][1], left[i], offset)
            if method == "gaussian":
                left[i][4] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i][4] *= 1 - overlap if method == "linear" else 0
            if left[i][4] < least:
                del left[i]
    return [i for i, _ in out], torch.tensor([row for _, row in out], dtype=torch.float64)


@each_seed
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_softnms_lowers_scores(seed, offset, method):
    boxes, scores = boxes_and_scores(seed)
    options = (0.3, 0.4, 0.15, method, offset)
    dets, kept = ops.soft_nms(strided(boxes), strided(scores), *options)
    expected, rows = soft_by_hand(boxes.tolist(), scores.tolist(), *options)
    assert kept.tolist() == expected and 1 < len(expected) < len(boxes)
    torch.testing.assert_close(dets, rows)
    single, again = ops.soft_nms(boxes.float().requires_grad_(), scores.float(), *options)
    assert single.dtype == torch.float32 and again.tolist() == expected
    torch.testing.assert_close(single, rows.float(), rtol=1e-4, atol=1e-5)


def test_the_best_box_stays_whatever_its_score():
    boxes, scores = boxes_and_scores(0, 9)
    assert ops.soft_nms(boxes, scores * 1e-6, min_score=0.1)[1].tolist() == [int(scores.argmax())]


@each_seed
@pytest.mark.parametrize("threshold", [0.2, 0.5, 1.0])
def test_nms_match_groups_what_nms_drops(seed, threshold):
    dets = torch.cat([x.view(23, -1) for x in boxes_and_scores(seed)], 1)
    rows, groups, taken = dets.tolist(), [], set()
    for i in sorted(range(len(rows)), key=lambda i: -rows[i][4]):
        if i not in taken:
            rest = [j for j in range(len(rows)) if j not in taken and j != i and iou(rows[i], rows[j]) >= threshold]
            groups.append([i, *sorted(rest, key=lambda j: -rows[j][4])])
            taken.update(groups[-1])
    for given in (strided(dets), dets.float().requires_grad_(), dets.numpy()):
        got = ops.nms_match(given, threshold)
        assert [list(map(int, group)) for group in got] == groups
    assert any(len(group) > 1 for group in groups)


def lines_and_scores(seed, n=17, rows=12):
    lines = uniform(n, 5 + rows, seed=seed)
    lines[:, 2] = lines[:, 2] * 1.2 - 0.2  # some begin before the first row
    lines[:, 4] = lines[:, 4] * 1.2 * rows
    lines[3, 4] = 0.4
    # A line moved by up to some pixels, so that there are lines to merge.
    lines[:, 5:] = 30 + 9 * normal(n, rows, seed=seed + 9)[torch.arange(n) % 4] + 3 * lines[:, :1]
    return lines, torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double()


def close(a, b, overlap):
    rows = len(a) - 5
    starts = [int(line[2] * (rows - 1) + 0.5) for line in (a, b)]
    ends = [start + int(line[4]) - 1 for start, line in zip(starts, (a, b), strict=True)]
    shared = range(max(starts), min(*ends, rows - 1) + 1)
    return len(shared) > 0 and shared[0] >= 0 and sum(abs(a[5 + i] - b[5 + i]) for i in shared) < overlap * len(shared)


@each_seed
@pytest.mark.parametrize("top_k", [3, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_line_nms_keeps_one_of_close_lines(seed, top_k, dtype):
    lines, scores = (x.to(dtype) for x in lines_and_scores(seed))
    lines[2, 5] = torch.inf  # outside of what most lines share
    rows, kept, owner, dead = lines.tolist(), [], [0] * len(lines), set()
    order = sorted(range(len(rows)), key=lambda i: -scores[i])
    for place, i in enumerate(order):
        if i in dead or len(kept) == top_k:
            continue
        kept.append(i)
        owner[i] = len(kept)
        for j in order[place + 1 :]:
            if close(rows[i], rows[j], 2.0):
                owner[j] = len(kept)
                dead.add(j)
    keep, count, belongs = line_nms(strided(lines).requires_grad_(), strided(scores), 2.0, top_k)
    assert int(count) == len(kept) < len(rows) and keep[:count].tolist() == kept
    assert not keep[count:].any() and belongs.tolist() == owner


def test_a_jump_in_rows_that_lines_do_not_share_does_not_count():
    lines = torch.zeros(2, 10)
    lines[0, 4], lines[1, 4] = 5, 3
    lines[:, 8] = torch.inf
    lines[0, 9] = torch.nan
    assert line_nms(lines, torch.tensor([1.0, 2.0]), 1.0, 5)[2].tolist() == [1, 1]


def test_no_boxes_and_no_lines():
    dets, kept = ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert dets.shape == (0, 5) and kept.dtype == torch.long
    dets, kept = ops.soft_nms(torch.empty(0, 4), torch.empty(0))
    assert dets.shape == (0, 5) and kept.dtype == torch.long
    assert operators.nms_match(torch.empty(0, 5), iou_threshold=0.5) == []
    keep, count, owner = line_nms(torch.empty(0, 77), torch.empty(0), 2.0, 4)
    assert len(keep) == len(owner) == int(count) == 0
