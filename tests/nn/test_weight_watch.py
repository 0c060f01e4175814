"""What tells weights apart, and views of one weight from others."""

from __future__ import annotations

import pytest
import torch

from aihwkit_nabn.nn.weight_watch import _place

KINDS = {
    "dense": lambda: torch.randn(4, 6),
    "sparse": lambda: torch.randn(4, 6).to_sparse(),
    "sparse rows": lambda: torch.randn(4, 6).to_sparse_csr(),
    "meta": lambda: torch.empty(4, 6, device="meta"),
    "empty": lambda: torch.empty(0, 6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_has_a_place_of_its_own(kind):
    tensors = [KINDS[kind]() for _ in range(3)]
    places = [_place(tensor) for tensor in tensors]
    assert 0 not in places and len(set(places)) == 3
    assert [_place(tensor) for tensor in tensors] == places


def test_views_have_the_place_of_what_they_show():
    tensor = torch.randn(4, 6)
    assert _place(tensor) == _place(tensor.T) == _place(tensor[1:]) == _place(tensor.detach())
