from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from aihwkit_nabn.calibration.batches import SampleStore, batch_size, check_finite, default_forward, describe, limited
from aihwkit_nabn.errors import CalibrationError

Pair = namedtuple("Pair", ["images", "labels"])


def images(n, *shape):
    return torch.arange(float(n)).view(-1, *(1,) * len(shape)).expand(n, *shape).clone()


def pictures(n, height=4):
    return [torch.full((3, height + i, 5), float(i)) for i in range(n)]


BATCHES = {
    "tensor": lambda n: images(n, 3, 4, 5),
    "vectors": lambda n: images(n, 7),
    "tuple of images and labels": lambda n: (images(n, 3, 4, 5), torch.arange(n)),
    "list of images and labels, as a DataLoader gives it": lambda n: [images(n, 3, 4, 5), torch.arange(n)],
    "sequences and labels": lambda n: (images(n, 4, 5), torch.arange(n)),
    "list of sequences and labels": lambda n: [images(n, 4, 5), torch.arange(n)],
    "named tuple": lambda n: Pair(images(n, 3, 4, 5), torch.arange(n)),
    "dictionary": lambda n: {"image": images(n, 3, 4, 5), "label": torch.arange(n), "split": "val", "scale": 2.0},
    "nested dictionary": lambda n: {"meta": {"name": "a"}, "x": {"image": images(n, 3, 4, 5)}},
    "ordered dictionary of lists": lambda n: OrderedDict(
        inputs=pictures(n), data_samples=[{"id": i} for i in range(n)]
    ),
    "list of pictures": pictures,
    "list of records": lambda n: [{"image": picture, "id": i} for i, picture in enumerate(pictures(n))],
    "list of pairs": lambda n: [(picture, i) for i, picture in enumerate(pictures(n))],
    "tuples of pictures and targets": lambda n: (
        tuple(pictures(n)),
        tuple({"boxes": torch.ones(2, 4)} for _ in range(n)),
    ),
    "lists of pictures and boxes": lambda n: (pictures(n), [torch.ones(i, 4) for i in range(n)]),
    "strings": lambda n: [f"{i}.jpg" for i in range(n)],
}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", BATCHES)
def test_samples_are_counted_and_cut_exactly(kind, n):
    batch = BATCHES[kind](n)
    assert batch_size(batch) == n
    for limit in range(1, n + 1):
        ((cut, size),) = limited([batch], limit)
        assert size == batch_size(cut) == limit
        assert type(cut) in (type(batch), dict)
        assert describe(cut).startswith(type(cut).__name__)
        expected = BATCHES[kind](n)
        if isinstance(batch, dict):
            assert cut.keys() == batch.keys() and cut.get("split") == batch.get("split")
        elif isinstance(batch, torch.Tensor):
            assert torch.equal(cut, expected[:limit])
        elif kind.startswith(("tuple of", "named", "list of images", "list of sequences", "sequences")):
            assert len(cut) == 2 and torch.equal(cut[1], torch.arange(limit))
        elif kind.startswith(("tuples", "lists")):
            assert len(cut) == 2 and len(cut[0]) == len(cut[1]) == limit
        else:
            assert len(cut) == limit


@pytest.mark.parametrize(("max_samples", "sizes"), [(None, [5, 1, 4]), (10, [5, 1, 4]), (7, [5, 1, 1]), (6, [5, 1])])
def test_the_limit_counts_over_uneven_batches_and_no_further_batch_is_drawn(max_samples, sizes):
    drawn = []

    def loader():
        for n in (5, 1, 4):
            drawn.append(n)
            yield images(n, 3)

    assert [size for _, size in limited(loader(), max_samples)] == sizes
    assert drawn == [5, 1, 4][: len(sizes)]


def test_dataloaders():
    data = TensorDataset(images(7, 3, 2, 2), torch.arange(7))
    assert [size for _, size in limited(DataLoader(data, batch_size=2), 5)] == [2, 2, 1]
    assert sum(size for _, size in limited(DataLoader(data, batch_size=3), None)) == 7


@pytest.mark.parametrize("more", [(), (torch.arange(7),), (images(7, 3, 20),)])
def test_lists_of_sequences_as_a_dataloader_gives_them(more):
    """For the default forward, which runs the first part alone."""
    loader = DataLoader(TensorDataset(images(7, 3, 20), *more), batch_size=3)
    for max_samples, sizes in ((None, [3, 3, 1]), (4, [3, 1]), (2, [2])):
        found = list(limited(loader, max_samples, default_forward))
        assert [size for _, size in found] == [len(batch[0]) for batch, _ in found] == sizes
        store = SampleStore([batch for batch, _ in found])
        assert store.by_sample and store.n == sum(sizes)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_found_wherever_it_is(bad):
    for batch in (torch.tensor([bad]), (images(2, 3), torch.tensor([1.0, bad])), {"a": [{"b": torch.tensor([bad])}]}):
        with pytest.raises(CalibrationError, match="calibration batch 1 holds NaN or infinite values"):
            list(limited([images(2, 3), batch], None))
    check_finite((torch.tensor([1]), "text", None, torch.tensor([True])), "batch")


def test_errors_of_the_loader_are_told_and_interruptions_pass():
    def failing(error):
        yield images(2, 3)
        raise error

    with pytest.raises(CalibrationError, match="the calibration loader failed after 1 batches: no such file") as caught:
        list(limited(failing(OSError("no such file")), None))
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(KeyboardInterrupt):
        list(limited(failing(KeyboardInterrupt()), None))


def test_the_default_forward():
    model = nn.Linear(3, 2).double()
    x = images(2, 3).double()
    for batch in (x, (x, torch.arange(2)), [x, "labels"]):
        assert torch.equal(default_forward(model, batch), model(x))
    for batch in ({"image": x}, ("a", "b"), [], None, [[x]]):
        with pytest.raises(CalibrationError, match=r"needs forward_fn\(model, batch\)"):
            default_forward(model, batch)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 100])
@pytest.mark.parametrize("share", [0.0, 0.125, 0.5])
def test_held_out_samples(n, share):
    learn, held = SampleStore([images(n, 3)]).split(share)
    assert sorted(learn + held) == list(range(n))
    assert len(held) == (0 if share == 0 or n < 2 else max(1, round(n * share)))


@pytest.mark.parametrize("kind", list(BATCHES)[:5])
def test_joined_samples_come_back_in_the_batchs_own_form(kind):
    store = SampleStore([BATCHES[kind](3), BATCHES[kind](1), BATCHES[kind](2)])
    assert store.by_sample and store.n == 6
    taken = store.take([5, 0, 3])
    whole = BATCHES[kind](3)
    assert type(taken) is type(whole)
    values = taken if isinstance(taken, torch.Tensor) else taken[0]
    assert values.flatten(1)[:, 0].tolist() == [1.0, 0.0, 0.0]
    groups = store.minibatches(list(range(6)), 4)
    assert [len(group) for group in groups] == [4, 2]
    assert [len(group) for group in store.minibatches(list(range(5)), 4)] == [5]
    assert store.minibatches([], 4) == []


@pytest.mark.parametrize("kind", list(BATCHES)[6:])
def test_other_batches_are_drawn_whole(kind):
    whole = [BATCHES[kind](3), BATCHES[kind](1)]
    store = SampleStore(whole)
    assert not store.by_sample and store.n == 2
    assert store.minibatches([1, 0], 64) == [[1], [0]]
    assert store.take([1]) is whole[1]


def test_images_of_several_sizes_are_not_joined():
    store = SampleStore([images(2, 3, 4, 4), images(3, 3, 5, 5)])
    assert not store.by_sample and store.n == 2
