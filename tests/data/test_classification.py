from __future__ import annotations

import pytest
import torch
from torch import nn

from aihwkit_nabn.data.classification import ImageSet, accuracy_on, batch_accuracy, image_batches, topk_hits
from aihwkit_nabn.errors import NabnError


def test_topk_hits_counts_labels_among_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [5.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([2, 2, 2])
    assert topk_hits(logits, labels, 1) == 1
    assert topk_hits(logits, labels, 2) == 3


def test_nan_is_a_miss_even_where_torch_would_rank_it_first() -> None:
    logits = torch.full((4, 3), float("nan"))
    assert topk_hits(logits, torch.zeros(4, dtype=torch.int64), 3) == 0


def test_accuracy_weighs_uneven_batches_by_their_size() -> None:
    labels = torch.tensor([0, 1, 1, 1, 1])
    data = ImageSet(images=torch.zeros(5, 2, 1, 1), labels=labels)
    right = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    nn.init.zeros_(right[1].weight)
    right[1].bias.data = torch.tensor([1.0, 0.0])  # always says 0
    assert accuracy_on(data, batch_size=2)(right) == {"accuracy": 20.0}


def test_top5_only_where_asked() -> None:
    logits = torch.eye(10)[:4]
    batches = [(logits, torch.tensor([0, 1, 9, 9]))]
    scores = batch_accuracy(nn.Identity(), batches, top5=True)
    assert scores["accuracy"] == 50.0 and set(scores) == {"accuracy", "top5_accuracy"}


def test_no_images_is_an_error() -> None:
    with pytest.raises(NabnError, match="no test images"):
        batch_accuracy(nn.Identity(), [])


@pytest.mark.parametrize("shapes", [((3, 1, 2, 2), (4,)), ((3, 4), (3,))])
def test_image_set_refuses_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(NabnError, match="images must be"):
        ImageSet(images=torch.zeros(shapes[0]), labels=torch.zeros(shapes[1]))


def test_shuffled_and_first_keep_images_with_their_labels() -> None:
    labels = torch.arange(20)
    data = ImageSet(images=labels.float().view(-1, 1, 1, 1), labels=labels)
    part = data.shuffled(3).first(7)
    assert torch.equal(part.images.flatten().long(), part.labels)
    assert len(part) == 7 and not torch.equal(part.labels, labels[:7])
    assert torch.equal(part.labels, data.shuffled(3).first(7).labels)


def test_image_batches_are_repeatable_and_complete() -> None:
    images = torch.randn(10, 1, 2, 2)
    batches = image_batches(images, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), images) and torch.equal(torch.cat(batches), images)
