"""Under `torch.compile`, and with NaN, the operators give what they give otherwise, or what mmcv gives."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmcv.ops")

from mmcv import ops

from aihwkit_nabn.openmmlab import operators

TARGET = torch.tensor([0, 2, 3, 1])
ROIS = torch.tensor([[0.0, 1.0, 1.0, 6.0, 5.0], [0.0, 0.0, 2.0, 3.0, 7.0]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (ops.PSAMask("collect", (3, 3)), [(1, 9, 4, 4)]),
        (lambda x, w: ops.carafe(x, w.softmax(1), 3, 1, 2), [(1, 4, 3, 3), (1, 9, 6, 6)]),
        (lambda x: ops.sigmoid_focal_loss(x, TARGET, 2.0, 0.25, None, "sum"), [(4, 3)]),
        (lambda x: ops.softmax_focal_loss(x, TARGET.clamp(max=2), 2.0, 0.25, None, "sum"), [(4, 3)]),
        (lambda x, o: ops.deform_roi_pool(x, ROIS, o, (2, 2), 1.0, 2, 0.1), [(1, 3, 8, 8), (2, 2, 2, 2)]),
        (lambda x: ops.roi_align(x, ROIS, 2, 1.0, 0, "max", True), [(1, 3, 8, 8)]),
        (lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1), [(1, 2, 5, 5), (1, 18, 5, 5), (3, 2, 3, 3)]),
    ],
)
def test_gradients_under_torch_compile(function, shapes) -> None:
    torch.manual_seed(0)
    found = []
    inputs = [torch.randn(shape) for shape in shapes]
    for call in (function, torch.compile(function, backend="eager")):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = call(*leaves)
        found.append((out.detach(), *torch.autograd.grad(out.sum(), leaves)))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain)
    assert all(grad.abs().max() > 0 for grad in found[1][1:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_samples_at_nan_count_nothing(bad, dtype) -> None:
    torch.manual_seed(0)
    x, offset, weight = torch.randn(1, 2, 5, 7), torch.randn(1, 18, 5, 7), torch.randn(3, 2, 3, 3)
    mask = torch.rand(1, 9, 5, 7)
    offset[0, 3] = 1e3  # the second element of the kernel, outside
    broken = offset.clone()
    broken[0, 3] = bad
    for call in (
        lambda o, *t: ops.deform_conv2d(t[0], o, t[1], 1, 1),
        lambda o, *t: ops.modulated_deform_conv2d(t[0], o, mask.to(dtype), t[1], None, 1, 1),
    ):
        found = []
        for given in (offset, broken):
            leaves = [t.to(dtype).requires_grad_() for t in (given, x, weight)]
            out = call(*leaves)
            found.append((out, *torch.autograd.grad(out.float().sum(), leaves)))
        for got, expected in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, 1, 4])
def test_regions_that_are_no_numbers_are_empty(bad, column) -> None:
    x, rois = torch.rand(1, 2, 8, 8) + 1, ROIS.clone()
    rois[1, column] = bad
    for call in (
        lambda r: ops.roi_align(x, r, 2, 1.0, 2, "avg", True),
        lambda r: ops.roi_align(x, r, 2, 1.0, 0, "avg", False),
        lambda r: ops.roi_align(x, r, 2, 1.0, 2, "max", True),
        lambda r: ops.roi_pool(x, r, 2),
        lambda r: ops.deform_roi_pool(x, r, None, (2, 2), 1.0, 0, 0.1),
    ):
        out = call(rois)
        assert torch.equal(out[0], call(ROIS)[0]) and not out[1].any()


def test_operators_are_found_by_pickle() -> None:
    import pickle

    assert all(pickle.loads(pickle.dumps(getattr(operators, name))) for name in operators.__all__)
