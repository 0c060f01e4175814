"""Synchronized BatchNorm, in one process and in steps for two, against torch's BatchNorm on all samples."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv.ops.sync_bn import SyncBatchNormFunction

from aihwkit_nabn.openmmlab import operators
from tests.openmmlab.operators.helpers import each_seed, needs_gpu, normal, same, strided, uniform, weighting

SHAPES = [(3, 2, 4, 5), (1, 3, 2, 1), (4, 1, 7), (2, 2, 2, 3, 2), (1, 2, 1, 1)]


def reference(shape, seed, dtype=torch.float64):
    torch.manual_seed(seed)
    kind = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)[len(shape) - 3]
    norm = kind(shape[1], eps=1e-3, momentum=0.3).to(dtype)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def trained(x, norm):
    """Output, gradients of input, weight and bias, and the running statistics behind torch's BatchNorm."""
    x = x.detach().clone().requires_grad_()
    out = norm(x)
    gradients = torch.autograd.grad(out, (x, norm.weight, norm.bias), weighting(out))
    return [out.detach(), *gradients, norm.running_mean, norm.running_var]


def trained_by_mmcv(x, norm, mode="default"):
    x = x.detach().clone().requires_grad_()
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    options = (norm.momentum, norm.eps, None, 1, mode)
    out = SyncBatchNormFunction.apply(x, mean, var, norm.weight, norm.bias, *options)
    gradients = torch.autograd.grad(out, (x, norm.weight, norm.bias), weighting(out))
    return [out.detach(), *gradients, mean, var]


@pytest.mark.parametrize("mode", ["default", "N"])
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_one_process_is_batchnorm(shape, mode, device):
    norm = reference(shape, 1, torch.float32).to(device)
    x = strided((normal(*shape) * 3 + 40).float()).to(device)
    got, expected = trained_by_mmcv(x, norm, mode), trained(x, norm)
    for mine, other in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_half_precision(device):
    norm, shape = reference(SHAPES[0], 2, torch.float32), SHAPES[0]
    x = (normal(*shape) * 3 + 1).half()
    got = trained_by_mmcv(x.to(device), norm.to(device))
    expected = trained(x.double(), norm.cpu().double())
    assert [t.dtype for t in got] == [torch.half] * 2 + [torch.float] * 4
    for mine, exact in zip(got, expected, strict=True):
        unit = torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine.cpu().double(), exact, rtol=0.51 * unit, atol=1e-5)


def in_steps(parts, norm):
    """What `trained` returns, by what mmcv does in as many processes, in the types of the inputs."""
    rows = [x.flatten(2) for x in parts]
    channels = norm.weight.numel()

    def new(n):
        return [norm.weight.new_full((channels,), torch.nan) for _ in range(n)]

    means, variances = new(len(rows)), new(len(rows))
    for x, mean in zip(rows, means, strict=True):
        operators.sync_bn_forward_mean(x, mean)
    mean = sum(means) / len(rows)
    for x, var in zip(rows, variances, strict=True):
        operators.sync_bn_forward_var(x, mean, var)
    var = sum(variances) / len(rows)
    outs, normalised, gradients = [torch.empty_like(x) for x in rows], [torch.empty_like(x) for x in rows], []
    (std,), count = new(1), len(rows)
    for x, out, normal_ in zip(rows, outs, normalised, strict=True):
        running = norm.running_mean.clone(), norm.running_var.clone()
        operators.sync_bn_forward_output(
            x, mean, var, norm.weight.data, norm.bias.data, *running, normal_, std, out, eps=norm.eps,
            momentum=mean.new_tensor([norm.momentum]), group_size=count,
        )  # fmt: skip
    out = torch.cat(outs).reshape(-1, *parts[0].shape[1:])
    grads = weighting(out).flatten(2).split([len(x) for x in rows])
    for grad, normal_ in zip(grads, normalised, strict=True):
        gradients.append(new(2))
        operators.sync_bn_backward_param(grad, normal_, *gradients[-1])
    weight, bias = (sum(values) / count for values in zip(*gradients, strict=True))
    back = [torch.empty_like(x) for x in rows]
    for grad, normal_, target in zip(grads, normalised, back, strict=True):
        operators.sync_bn_backward_data(grad, norm.weight.data, weight, bias, normal_, std, target)
    return [out, torch.cat(back).reshape(out.shape), weight * count, bias * count, *running]


@each_seed
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_two_processes_are_batchnorm_of_all_samples(shape, seed):
    parts = [strided(normal(*shape, seed=seed + i) * 2 - 1) for i in range(2)]
    norm = reference(shape, seed)
    got = in_steps(parts, norm)
    for mine, exact in zip(got, trained(torch.cat(parts), norm), strict=True):
        same(mine, exact)


def test_a_single_value_has_no_unbiased_variance():
    running = torch.zeros(2), torch.ones(2)
    x, one = torch.tensor([[[3.0], [5.0]]]), torch.ones(2)
    norm, std, out = torch.empty_like(x), torch.empty(2), torch.empty_like(x)
    operators.sync_bn_forward_output(
        x, x[0, :, 0], torch.zeros(2), one, one, *running, norm, std, out, eps=0.25, momentum=0.5, group_size=1
    )
    assert running[0].tolist() == [1.5, 2.5] and running[1].tolist() == [0.5, 0.5]
    assert std.tolist() == [0.5, 0.5] and out.tolist() == [[[1.0], [1.0]]]


def test_no_images_change_nothing():
    mean, var, weight = uniform(3).float(), uniform(3, seed=1).float(), torch.ones(3, requires_grad=True)
    before = mean.clone(), var.clone()
    x = torch.zeros(0, 3, 2, 2, requires_grad=True)
    out = SyncBatchNormFunction.apply(x, mean, var, weight, torch.zeros(3), 0.1, 1e-5, None, 1, "N")
    out.sum().backward()
    assert out.shape == x.shape and x.grad.shape == x.shape and not weight.grad.any()
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])
