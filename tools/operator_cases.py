"""Random inputs for mmcv's operators, and how far the results of two kinds of operators lie apart."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from switching import mmcv_calls
from torch import Tensor

from aihwkit_nabn.errors import first_line

Job = Callable[[], list[Tensor]]
BAR = 1e-5
NO_CODE = ("implementation for device cpu not found", "must be a CUDA tensor")  # mmcv's words


class Draw:
    """Random values on a device, all from one seed."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """Return a number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def one_of(self, *options: Any) -> Any:
        """Return one of the options."""
        return options[self.integer(0, len(options) - 1)]

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return values in an interval."""
        return (torch.rand(shape, generator=self.generator) * (high - low) + low).to(self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return values of the normal distribution."""
        return torch.randn(shape, generator=self.generator, dtype=dtype).to(self.device)

    def classes(self, low: int, high: int, n: int) -> Tensor:
        """Return class numbers, both ends included."""
        return torch.randint(low, high + 1, (n,), generator=self.generator).to(self.device)

    def scores(self, n: int) -> Tensor:
        """Return scores; half of the time some are equal."""
        scores = (torch.randperm(n, generator=self.generator) + 0.5) / max(n, 1)
        return ((scores * 16).ceil() / 16 if self.one_of(True, False) else scores).to(self.device)

    def boxes(self, n: int, height: float, width: float, empty: bool = False) -> Tensor:
        """Return ``[n, 4]`` boxes: some reach out of the image, some lie outside; half of the time whole pixels.

        With `empty` one has no area.
        """
        size = torch.tensor([width, height], device=self.device)
        middle = self.uniform(-0.2, 1.2, n, 2) * size
        half = self.uniform(0.02, 1.0, n, 2) ** 2 * size / 2
        boxes = torch.cat([middle - half, middle + half], 1)
        if self.one_of(True, False):
            boxes = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], 1)
        if empty and n:
            boxes[0, 2:] = boxes[0, :2]
        return boxes

    def rois(self, x: Tensor, scale: float, empty: bool = False) -> Tensor:
        """Return ``[n, 5]`` regions of images whose maps are `x`."""
        n = self.one_of(1, 5, 24)
        boxes = self.boxes(n, x.shape[2] / scale, x.shape[3] / scale, empty)
        image = self.classes(0, len(x) - 1, n).to(boxes.dtype)
        return torch.cat([image[:, None], boxes], 1).to(x.dtype)

    def maps(self, channels: int, dtype: torch.dtype = torch.float32, least: int = 1) -> Tensor:
        """Return ``[1 to 3, channels, height, width]``, odd sizes and even."""
        shape = self.integer(1, 3), channels, self.integer(least, least + 14), self.integer(least, least + 14)
        return self.normal(*shape, dtype=dtype)

    def precision(self) -> torch.dtype:
        """Return single or double precision."""
        dtype: torch.dtype = self.one_of(torch.float32, torch.float32, torch.float64)
        return dtype


def nms(draw: Draw) -> Job:
    """Plain suppression: indices."""
    from mmcv.ops.nms import nms as function

    n = draw.one_of(0, 1, 7, 60, 300)
    boxes, scores = draw.boxes(n, 120, 90, empty=True), draw.scores(n)
    options = {"iou_threshold": draw.one_of(0.3, 0.5, 0.6, 0.7), "offset": draw.one_of(0, 1)}
    options |= {"score_threshold": draw.one_of(0.0, 0.2), "max_num": draw.one_of(-1, 10)}
    return lambda: list(function(boxes, scores, **options))


def softnms(draw: Draw) -> Job:
    """Soft suppression: boxes with their new scores, indices."""
    from mmcv.ops.nms import soft_nms as function

    n = draw.one_of(0, 1, 7, 60, 300)
    boxes, scores = draw.boxes(n, 120, 90, empty=True), draw.scores(n)
    options = {"iou_threshold": draw.one_of(0.3, 0.5, 0.6), "sigma": draw.one_of(0.1, 0.5)}
    options |= {"method": draw.one_of("naive", "linear", "gaussian"), "offset": draw.one_of(0, 1)}
    options["min_score"] = draw.one_of(0.0, 1e-3, 0.05, 0.3)
    return lambda: list(function(boxes, scores, **options))


def nms_match(draw: Draw) -> Job:
    """Groups of boxes: indices."""
    from mmcv.ops.nms import nms_match as function

    n = draw.one_of(0, 1, 7, 60, 300)
    dets = torch.cat([draw.boxes(n, 120, 90, empty=True), draw.scores(n)[:, None]], 1)
    threshold = draw.one_of(0.3, 0.5, 0.6, 0.7)
    return lambda: function(dets, threshold)


def line_nms(draw: Draw) -> Job:
    """Lane lines: indices, count, and owners."""
    from mmcv.ops.line_nms import line_nms as function

    n, rows = draw.one_of(1, 7, 60), draw.one_of(12, 72)
    head = torch.stack([draw.uniform(0, 1, n), draw.uniform(0, 1, n), draw.uniform(0, 0.6, n)], 1)
    lengths = draw.uniform(0, rows, n)[:, None]
    places = draw.uniform(0, 200, n, 1) + draw.uniform(-6, 6, n, rows).cumsum(1)
    lines = torch.cat([head, draw.uniform(0, 1, n, 1), lengths, places], 1)
    scores, overlap, most = draw.scores(n), draw.one_of(5.0, 15.0, 50.0), draw.one_of(4, n)
    return lambda: list(function(lines, scores, overlap, most))


def roi_align(draw: Draw, mode: str) -> Job:
    """Means of samples, or the largest: output, gradient of the map."""
    from mmcv.ops.roi_align import roi_align as function

    x, scale, ratio = draw.maps(3, draw.precision()), draw.one_of(1.0, 0.25, 1 / 16), draw.one_of(0, 1, 2, 3)
    # Of a region without samples mmcv's largest is -10000, ours 0.
    rois = draw.rois(x, scale, empty=mode == "avg" or ratio > 0)
    size = draw.one_of(7, (3, 5), 1)
    return _differentiated(function, [x], rois, size, scale, ratio, mode, draw.one_of(True, False))


def roi_pool(draw: Draw) -> Job:
    """Largest pixels: output, gradient of the map."""
    from mmcv.ops.roi_pool import roi_pool as function

    x, scale = draw.maps(3), draw.one_of(1.0, 0.25, 1 / 16)
    return _differentiated(function, [x], draw.rois(x, scale), draw.one_of(7, (3, 5), 1), scale)


def deform_roi_pool(draw: Draw) -> Job:
    """Means of moved samples: output, gradients of map and offsets."""
    from mmcv.ops.deform_roi_pool import deform_roi_pool as function

    x, scale, size = draw.maps(3), draw.one_of(1.0, 0.25), draw.one_of((7, 7), (3, 5))
    rois, ratio, gamma = draw.rois(x, scale), draw.one_of(0, 2), draw.one_of(0.1, 0.5)
    if draw.one_of(True, False):
        return _differentiated(lambda x: function(x, rois, None, size, scale, ratio, gamma), [x])
    offset = draw.normal(len(rois), 2, *size)
    return _differentiated(lambda x, moved: function(x, rois, moved, size, scale, ratio, gamma), [x, offset])


@dataclass(frozen=True)
class _Convolution:
    x: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    options: dict[str, Any]

    @classmethod
    def of(cls, draw: Draw) -> _Convolution:
        dtype, groups, parts = draw.precision(), draw.one_of(1, 2), draw.one_of(1, 2, 4)
        x = draw.maps(draw.one_of(4, 8), dtype, least=5)
        kernel = draw.one_of((3, 3), (1, 1), (3, 2))
        weight = draw.normal(groups * draw.integer(1, 3), x.shape[1] // groups, *kernel, dtype=dtype)
        options = {"stride": draw.one_of(1, 2, (2, 1)), "padding": draw.one_of(0, 1, (1, 2))}
        options["dilation"] = draw.one_of(1, 2, (1, 2))
        sample = torch.nn.functional.conv2d(x, weight, groups=groups, **options)
        positions = kernel[0] * kernel[1]
        # Without offsets, as new layers are, samples lie on pixels and, in the padding, on the map's very edge.
        offset = draw.one_of(0.0, 0.5, 3.0) * draw.normal(len(x), parts * positions * 2, *sample.shape[2:], dtype=dtype)
        mask = draw.normal(len(x), parts * positions, *sample.shape[2:], dtype=dtype).sigmoid()
        return cls(x, weight, offset, mask, options | {"groups": groups, "deform_groups": parts})


def deform_conv(draw: Draw) -> Job:
    """Deformable convolution: output, gradients of map, offsets and weight."""
    from mmcv.ops.deform_conv import deform_conv2d as function

    c, step = _Convolution.of(draw), draw.one_of(32, 1)
    options = (*c.options.values(), False, step)
    return _differentiated(lambda *t: function(*t, *options), [c.x, c.offset, c.weight])


def modulated_deform_conv(draw: Draw) -> Job:
    """Modulated deformable convolution: output, gradients of map, offsets, mask, weight and bias."""
    from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d as function

    c = _Convolution.of(draw)
    tensors, options = [c.x, c.offset, c.mask, c.weight], c.options.values()
    if draw.one_of(True, False):
        return _differentiated(lambda *t: function(*t, None, *options), tensors)
    bias = draw.normal(len(c.weight), dtype=c.x.dtype)
    return _differentiated(lambda *t: function(*t, *options), [*tensors, bias])


def ms_deform_attn(draw: Draw) -> Job:
    """Attention: output, gradients of value, places and weights."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    levels, batch, heads, channels = draw.integer(1, 3), draw.integer(1, 3), draw.one_of(1, 4), draw.one_of(4, 32)
    shapes = torch.tensor([[draw.integer(1, 9), draw.integer(1, 9)] for _ in range(levels)], device=draw.device)
    sizes = shapes.prod(1)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    queries, points = draw.one_of(1, 20), draw.one_of(1, 4)
    value = draw.normal(batch, int(sizes.sum()), heads, channels)
    places = draw.uniform(-0.2, 1.2, batch, queries, heads, levels, points, 2)
    weights = draw.normal(batch, queries, heads, levels * points).softmax(-1).unflatten(-1, (levels, points))
    return _differentiated(
        lambda v, p, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, p, w, 64), [value, places, weights]
    )


def sigmoid_focal_loss(draw: Draw) -> Job:
    """Loss of each class, gradient of the logits."""
    from mmcv.ops.focal_loss import sigmoid_focal_loss as function

    n, classes, reduction = draw.one_of(1, 50), draw.one_of(1, 7), draw.one_of("none", "mean", "sum")
    return _focal_loss(draw, function, n, classes, draw.classes(-1, classes, n), reduction)


def softmax_focal_loss(draw: Draw) -> Job:
    """Loss of each sample, gradient of the logits."""
    from mmcv.ops.focal_loss import softmax_focal_loss as function

    # mmcv cannot differentiate the losses of single samples ("none").
    n, classes, reduction = draw.one_of(1, 50), draw.one_of(2, 7), draw.one_of("mean", "sum")
    return _focal_loss(draw, function, n, classes, draw.classes(-1, classes - 1, n), reduction)


def _focal_loss(
    draw: Draw, function: Callable[..., Tensor], n: int, classes: int, target: Tensor, reduction: str
) -> Job:
    logits, gamma, alpha = 4 * draw.normal(n, classes), draw.one_of(2.0, 1.5), draw.one_of(0.25, 0.5)
    weight = draw.uniform(0.5, 2, classes) if draw.one_of(True, False) else None
    return _differentiated(function, [logits], target, gamma, alpha, weight, reduction)


def masked_conv(draw: Draw) -> Job:
    """Convolution at chosen places: output."""
    from mmcv.ops.masked_conv import masked_conv2d as function

    x, kernel = draw.maps(4, least=3)[:1], draw.one_of(1, 3)
    weight, bias = draw.normal(5, 4, kernel, kernel), draw.normal(5)
    mask = draw.uniform(0, 1, 1, *x.shape[2:]) - draw.one_of(0.0, 0.5, 1.0)
    return lambda: [function(x, mask, weight, bias, kernel // 2)]


def psamask(draw: Draw) -> Job:
    """Masks laid over the map: output, gradient of the masks."""
    from mmcv.ops.psa_mask import psa_mask as function

    size = draw.one_of((3, 3), (5, 3), (9, 9))
    x = draw.maps(size[0] * size[1], draw.precision())
    return _differentiated(function, [x], draw.one_of(0, 1), size)


def carafe(draw: Draw) -> Job:
    """Upsampling: output, gradients of features and kernels."""
    from mmcv.ops.carafe import carafe as function

    return _carafe(draw, function)


def carafe_naive(draw: Draw) -> Job:
    """The same by mmcv's plain code, which has its own entry."""
    from mmcv.ops.carafe import carafe_naive as function

    return _carafe(draw, function, differentiable=draw.device.type == "cuda")  # mmcv says so itself


def _carafe(draw: Draw, function: Callable[..., Tensor], differentiable: bool = True) -> Job:
    kernel, groups, scale = draw.one_of(1, 3, 5), draw.one_of(1, 2), draw.one_of(1, 2, 3)
    x = draw.maps(4)
    masks = draw.normal(len(x), groups * kernel**2, x.shape[2] * scale, x.shape[3] * scale)
    if differentiable:
        return _differentiated(function, [x, masks], kernel, groups, scale)
    return lambda: [function(x, masks, kernel, groups, scale)]


def sync_bn(draw: Draw) -> Job:
    """BatchNorm of one process: output, running statistics, gradients of map, weight and bias."""
    from mmcv.ops.sync_bn import SyncBatchNormFunction

    x = draw.maps(5, least=2) * 3 + 1
    weight, bias = draw.uniform(0.5, 2, 5), draw.normal(5)
    mode = draw.one_of("default", "N")

    def job() -> list[Tensor]:
        mean, var = torch.zeros(5, device=x.device), torch.ones(5, device=x.device)
        found = _differentiated(
            lambda *t: SyncBatchNormFunction.apply(t[0], mean, var, *t[1:], 0.1, 1e-5, None, 1, mode), [x, weight, bias]
        )()
        return [*found, mean, var]

    return job


def _differentiated(function: Callable[..., Tensor], tensors: Sequence[Tensor], *rest: Any) -> Job:
    """Return the job of calling ``function(*tensors, *rest)`` and differentiating with respect to the tensors."""

    def job() -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        output = function(*leaves, *rest)
        probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
        return [output.detach(), *torch.autograd.grad(output, leaves, probe.to(output.device))]

    return job


OPERATORS: dict[str, Callable[[Draw], Job]] = {
    "nms": nms,
    "soft_nms": softnms,
    "nms_match": nms_match,
    "line_nms": line_nms,
    "roi_align_mean": partial(roi_align, mode="avg"),
    "roi_align_max": partial(roi_align, mode="max"),
    "roi_pool": roi_pool,
    "deform_roi_pool": deform_roi_pool,
    "deform_conv2d": deform_conv,
    "modulated_deform_conv2d": modulated_deform_conv,
    "ms_deform_attn": ms_deform_attn,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "softmax_focal_loss": softmax_focal_loss,
    "masked_conv2d": masked_conv,
    "psa_mask": psamask,
    "carafe": carafe,
    "carafe_naive": carafe_naive,
    "MMSyncBN": sync_bn,
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far an operator of ours lies from mmcv's.

    Attributes:
        name: A key of `OPERATORS`.
        inputs: How many were compared.
        error: Largest difference of a result or gradient, relative to its largest value; infinity where indices differ.
        seed: Of the inputs where it was found.
        problem: Why nothing was compared, or what went wrong; empty where all were compared.
        failed: Whether the problem is a fault.
        functions: Of `mmcv._ext` that were called.
    """

    name: str
    inputs: int = 0
    error: float = 0.0
    seed: int = 0
    problem: str = ""
    failed: bool = False
    functions: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def passes(self) -> bool:
        """Whether nothing is wrong."""
        return self.error <= BAR and not self.failed


def compare(name: str, kinds: tuple[ModuleType, ModuleType], inputs: int, device: torch.device) -> Comparison:
    """Compare two kinds of operators, ours and then mmcv's, on random inputs with the seeds 0, 1, ..."""
    row = Comparison(name=name)
    for seed in range(inputs):
        found = []
        for operators in reversed(kinds):
            with mmcv_calls(operators) as called, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                try:
                    found.append(OPERATORS[name](Draw(seed, device))())
                except ModuleNotFoundError:
                    return replace(row, problem="not in this mmcv")
                except (RuntimeError, AssertionError) as refusal:
                    text = first_line(refusal)
                    if any(words in text for words in NO_CODE):
                        return replace(row, problem="mmcv has no CPU code for it")
                    return replace(row, problem=f"seed {seed}: {type(refusal).__name__}: {text}", failed=True)
        theirs, own = found
        error = difference(own, theirs)
        row = replace(row, inputs=seed + 1, functions=row.functions | called.names)
        if error > row.error:
            row = replace(row, error=error, seed=seed)
    return row


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of results, each relative to its largest expected value.

    Infinity where they differ in number or shape, where indices differ, or where anything is not finite.
    """
    if len(found) != len(expected):
        return math.inf
    return max((_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    from coverage_models import largest_error

    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if expected.is_floating_point():
        return largest_error(found, expected)
    return 0.0 if torch.equal(found, expected) else math.inf
