"""Focal losses (Lin et al. 2017, arXiv 1708.02002) of class numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import at_least_single


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write each class's own binary loss, ``[n, classes]``, into `output`.

    Args:
        input: Logits, ``[n, classes]``.
        target: Class numbers, ``[n]``; the number of classes or a negative one for none of them.
        weight: ``[classes]``, or empty: factor of a sample by its class; a sample of no class has 1.
        output: Overwritten.
        gamma: Exponent that takes weight from what is clear already.
        alpha: Weight of the sample's own class; the others have ``1 - alpha``.
    """
    x = at_least_single(input)
    p, own = x.sigmoid(), _own(target, x)
    positive = alpha * (1 - p) ** gamma * F.logsigmoid(x)
    negative = (1 - alpha) * p**gamma * F.logsigmoid(-x)
    output.copy_(-torch.where(own, positive, negative) * _factors(weight, target, x.shape[1])[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element's loss with respect to its logit into `grad_input`."""
    x = at_least_single(input)
    p, own = x.sigmoid(), _own(target, x)
    positive = alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(x))
    negative = (1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-x) - p)
    grad_input.copy_(-torch.where(own, positive, negative) * _factors(weight, target, x.shape[1])[:, None])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write each sample's loss, ``[n]``, times `alpha`, into `output`; arguments as in `sigmoid_focal_loss_forward`.

    But `input` holds probabilities that add up to one, and samples of a negative class have no loss.
    """
    p = _probability(at_least_single(input), target)
    loss = -alpha * (1 - p) ** gamma * _log(p)
    output.copy_(torch.where(target >= 0, loss * _factors(weight, target, input.shape[1]), 0.0))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buffer: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of each sample's loss with respect to the logits into `grad_input`.

    `input` holds the probabilities; `buffer`, ``[n]``, is overwritten as by mmcv's own operator.
    """
    x = at_least_single(input)
    p = _probability(x, target)
    unsure = (1 - p).clamp(min=torch.finfo(x.dtype).tiny)  # gamma below 1 and a probability of 1
    slope = alpha * (gamma * unsure ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    slope = torch.where(target >= 0, slope * _factors(weight, target, x.shape[1]), 0.0)
    buffer.copy_(slope)
    grad_input.copy_(slope[:, None] * (_own(target, x).to(x.dtype) - x))


def _own(target: Tensor, like: Tensor) -> Tensor:
    """Whether a column is the sample's class, ``[n, classes]``."""
    return target[:, None] == torch.arange(like.shape[1], device=like.device)


def _probability(probabilities: Tensor, target: Tensor) -> Tensor:
    """Of the sample's own class, ``[n]``; that of class 0 where it has none."""
    return probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _factors(weight: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the factor of each sample, ``[n]``."""
    if not weight.numel():
        return torch.ones((), device=target.device).expand(len(target))
    known = (target >= 0) & (target < classes)
    return torch.where(known, at_least_single(weight)[target.clamp(0, classes - 1)], 1.0)
