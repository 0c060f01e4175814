"""Focal losses against the formula, element by element."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import assert_precise, each_precision, each_seed, normal, same, strided, uniform

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.5]


def make(seed, n=7, classes=4):
    logits = normal(n, classes, seed=seed) * 3
    target = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))
    return logits, target, 0.5 + uniform(classes, seed=seed + 1)


def sigmoid_loss(logits, target, gamma, alpha, weight):
    def one(x, own):
        p = 1 / (1 + math.exp(-x if own else x))
        return -(alpha if own else 1 - alpha) * (1 - p) ** gamma * math.log(p)

    rows = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        factor = 1.0 if weight is None or not 0 <= label < len(row) else float(weight[label])
        rows.append([factor * one(x, c == label) for c, x in enumerate(row)])
    return torch.tensor(rows, dtype=torch.float64)


def softmax_loss(logits, target, gamma, alpha, weight):
    losses = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        factor = 1.0 if weight is None else float(weight[label])
        losses.append(-alpha * factor * (1 - p) ** gamma * math.log(p) if label >= 0 else 0.0)
    return torch.tensor(losses, dtype=torch.float64)


@each_seed
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("weighted", [True, False])
def test_sigmoid_focal_loss(seed, gamma, weighted):
    logits, target, weight = make(seed)
    weight = weight if weighted else None
    target[0], target[1] = 4, -1  # background, in both ways
    expected = sigmoid_loss(logits, target, gamma, 0.3, weight)
    same(ops.sigmoid_focal_loss(strided(logits), strided(target), gamma, 0.3, weight, "none"), expected)
    same(ops.SigmoidFocalLoss(gamma, 0.3, weight)(logits.requires_grad_()[:], target), expected.sum() / len(target))


@each_seed
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("weighted", [True, False])
def test_softmax_focal_loss(seed, gamma, weighted):
    logits, target, weight = make(seed)
    weight = weight if weighted else None
    target[0] = -1  # background
    expected = softmax_loss(logits, target, gamma, 0.3, weight)
    same(ops.softmax_focal_loss(strided(logits), strided(target), gamma, 0.3, weight, "none"), expected)
    same(ops.SoftmaxFocalLoss(gamma, 0.3, weight)(logits.requires_grad_()[:], target), expected.sum() / len(target))


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_gradients(kind, gamma, weighted):
    logits, target, weight = make(5)
    weight = weight if weighted else None
    target[2] = -1
    loss = getattr(ops, f"{kind}_focal_loss")
    for reduction in ("mean", "sum") + (("none",) if kind == "sigmoid" else ()):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: loss(x, target, gamma, 0.3, weight, reduction), logits.requires_grad_()
        )


@each_precision
@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_precision(kind, dtype, device):
    # Called directly: mmcv computes the softmax and the product with what comes back in the input's precision.
    logits, target, weight = make(1)
    target[0] = -1

    def losses(x, target, weight):
        options, grad = {"gamma": 2.0, "alpha": 0.25}, torch.full_like(x, torch.nan)
        if kind == "sigmoid":
            out = torch.full_like(x, torch.nan)
            operators.sigmoid_focal_loss_forward(x, target, weight, out, **options)
            operators.sigmoid_focal_loss_backward(x, target, weight, grad, **options)
            return torch.cat([out, grad], 1).detach()
        out, buffer = (x.new_full((len(x),), torch.nan) for _ in range(2))
        operators.softmax_focal_loss_forward(x, target, weight, out, **options)
        operators.softmax_focal_loss_backward(x, target, weight, buffer, grad, **options)
        return torch.column_stack([out, buffer, grad]).detach()

    assert_precise(losses, [logits.softmax(1) if kind == "softmax" else logits, target, weight], dtype, device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_certain_and_hopeless_samples(dtype, gamma):
    far = 60.0
    logits, target = torch.tensor([[far, -far], [-far, far]], dtype=dtype), torch.tensor([0, 0])
    for loss, right, wrong in (
        (ops.sigmoid_focal_loss, 0.0, far * (0.25 + 0.75)),
        (ops.softmax_focal_loss, 0.0, 0.25 * 2 * far),
    ):
        x = logits.clone().requires_grad_()
        values = [loss(x[i : i + 1], target[i : i + 1], gamma, 0.25, None, "sum") for i in range(2)]
        assert values[0].item() == pytest.approx(right, abs=1e-6)
        # In single precision the smallest probability is 1e-38, and mmcv's softmax has half precision's zero.
        assert values[1].item() == pytest.approx(wrong, rel=0.3)
        sum(values).backward()
        assert x.grad.dtype == dtype and x.grad.isfinite().all() and x.grad[1].all()
        assert x.grad[1, 0] < 0 < x.grad[1, 1] and not x.grad[0].round(decimals=6).any()


def test_logits_at_infinity_of_other_classes_cost_nothing():
    logits, target = torch.tensor([[0.5, -torch.inf]], requires_grad=True), torch.tensor([0])
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        (gradient,) = torch.autograd.grad(loss(logits, target, 2.0, 0.25, None, "sum"), logits)
        (alone,) = torch.autograd.grad(loss(logits[:, :1], target, 2.0, 0.25, None, "sum"), logits)
        assert torch.equal(gradient, alone) and gradient.isfinite().all()


def test_no_samples_and_classes_that_are_not_there():
    empty, none = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.long)
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        assert loss(empty, none, 2.0, 0.25, None, "sum").item() == 0
        assert loss(empty, none, 2.0, 0.25, torch.ones(4), "none").numel() == 0
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        ops.softmax_focal_loss(torch.zeros(2, 4), torch.tensor([1, 4]), 2.0, 0.25, None, "sum")
