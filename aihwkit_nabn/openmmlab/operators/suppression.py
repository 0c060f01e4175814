"""Suppression of overlapping boxes and lines, and the grouping of boxes."""

from __future__ import annotations

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import at_least_single


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that no better box overlaps by more than `iou_threshold`, the best first.

    Args:
        boxes: ``[n, 4]``, two corners, in pixels.
        scores: ``[n]``.
        iou_threshold: Largest allowed intersection over union.
        offset: 1 where a box from pixel 3 to pixel 3 is one pixel wide, 0 where it is empty.
    """
    boxes, scores = at_least_single(boxes), at_least_single(scores)
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    boxes = boxes.to(dtype)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], 1)
    # In double precision 0.3 would be less than the same overlap in single.
    threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    order = _best_first(scores)
    ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=dtype)
    return order[torchvision.ops.nms(boxes[order], ranks, threshold)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of overlapping boxes instead of dropping them (Bodla et al. 2017, arXiv 1704.04503).

    Args:
        boxes: ``[n, 4]``, two corners.
        scores: ``[n]``.
        dets: ``[n, 5]``; its first rows are overwritten with the boxes kept and their new scores, the best first.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes whose score falls below it are dropped.
        method: 0 drops, 1 multiplies with ``1 - iou``, 2 with ``exp(-iou ** 2 / sigma)``.
        offset: As in `nms`.

    Returns:
        The indices of the boxes kept, ``[kept]``.
    """
    # In numpy, whose calls take less time than torch's. Boxes change places as in mmcv: of equal scores the same one
    # comes first.
    given = torch.cat([at_least_single(boxes), at_least_single(scores)[:, None]], 1).detach().cpu().numpy().T
    areas, number = (given[2] - given[0] + offset) * (given[3] - given[1] + offset), given.dtype.type
    table = np.vstack([given, areas, np.arange(len(boxes), dtype=given.dtype)])
    low, high, (left, areas, index) = table[:2], table[2:4], table[4:]
    done, end = 0, len(boxes)
    while done < end:
        best = done + int(left[done:end].argmax())
        table[:, [done, best]] = table[:, [best, done]]
        rest = slice(done + 1, end)
        size = np.minimum(high[:, rest], high[:, done, None]) - np.maximum(low[:, rest], low[:, done, None]) + offset
        shared = np.multiply(*np.maximum(size, 0))
        with np.errstate(invalid="ignore"):  # two empty boxes
            overlap = shared / (areas[rest] + areas[done] - shared)
        if method == 2:
            left[rest] *= np.exp(-(overlap * overlap) / number(sigma))
        else:
            left[rest] *= np.where(overlap >= number(iou_threshold), 1 - overlap if method == 1 else 0, 1)
        dropped = left[rest] < number(min_score)
        done, count = done + 1, end - done - 1 - int(np.count_nonzero(dropped))
        if done + count < end:  # the last ones move to where one is dropped
            free, last = np.flatnonzero(dropped[:count]), count + np.flatnonzero(~dropped[count:])[::-1]
            table[:, done + free] = table[:, done + last]
            end = done + count
    dets[:end] = torch.from_numpy(table[:5, :end].T.copy()).to(dets)
    return torch.from_numpy(index[:end].astype(np.int64)).to(boxes.device)


def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """Return, for each box that `nms` would keep, its index and those of the boxes that it suppresses, by score.

    Args:
        dets: ``[n, 5]``, two corners and the score.
        iou_threshold: A box is suppressed by a better one from this intersection over union on.
    """
    dets = at_least_single(dets)
    left = _best_first(dets[:, 4])
    groups = []
    while len(left):
        matched = _overlaps(dets[left[0]], dets[left], 0) >= iou_threshold
        matched[0] = True  # an empty box does not overlap itself
        groups.append(left[matched].tolist())
        left = left[~matched]
    return groups


def line_nms_forward(lines: Tensor, scores: Tensor, overlap: float, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress lane lines that lie close to a better one, as CLRNet does (Zheng et al. 2022, arXiv 2203.10350).

    Args:
        lines: ``[n, 5 + rows]``: element 2 is where a line starts, as a share of the rows, element 4 its length in
            rows; from element 5 on its x in every row, in pixels.
        scores: ``[n]``.
        overlap: Two lines are the same if their mean distance over the rows that both cross is below it, in pixels.
        top_k: How many lines are kept at the most.

    Returns:
        Indices of the lines kept, the best first, filled up with zeros to ``[n]``; how many they are; and for each
        line the number, from 1 on, of the last kept line that it is the same as, 0 for none.
    """
    x = at_least_single(lines)
    rows = x.shape[1] - 5
    begin = (x[:, 2] * (rows - 1) + 0.5).long()
    end = begin + x[:, 4].long() - 1
    order = _best_first(at_least_single(scores))
    keep, owner = torch.zeros_like(order), torch.zeros_like(order)
    alive, row, count = torch.ones(len(x), dtype=torch.bool, device=x.device), torch.arange(rows, device=x.device), 0
    for place, best in enumerate(order.tolist()):
        if count == top_k:
            break
        if not alive[best]:
            continue
        others = order[place + 1 :]
        first = begin[others].clamp(min=begin[best])
        last = end[others].clamp(max=min(int(end[best]), rows - 1))
        shared = (row >= first[:, None]) & (row <= last[:, None])
        distance = (x[others, 5:] - x[best, 5:]).abs().masked_fill(~shared, 0).sum(1)
        same = (last >= first) & (first >= 0) & (distance < overlap * (last - first + 1))
        keep[count] = best
        count += 1
        owner[best] = count
        owner[others[same]] = count
        alive[others[same]] = False
    return keep, torch.tensor(count, device=x.device), owner


def _best_first(scores: Tensor) -> Tensor:
    """Return the order that mmcv finds, also of equal scores: it does not ask for a stable one."""
    return scores.contiguous().sort(0, descending=True).indices


def _overlaps(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """Return the intersection over union of one box, ``[4 or 5]``, with others, ``[n, 4 or 5]``."""
    size = (torch.minimum(box[2:4], boxes[:, 2:4]) - torch.maximum(box[:2], boxes[:, :2]) + offset).clamp(min=0)
    shared = size[:, 0] * size[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)
    return shared / ((box[2] - box[0] + offset) * (box[3] - box[1] + offset) + areas - shared)
