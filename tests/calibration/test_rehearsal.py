"""Networks whose passes do not leave one another alone are calibrated as if each batch ran by itself."""

from __future__ import annotations

import contextvars
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import lockstep, rehearsal
from tests.chips import chip_of

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
SPLIT = [5, 4, 3]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.b(self.n(self.a(x)).relu())


class OnSelf(Two):
    def forward(self, x):
        self.skip = x
        return self.b(self.n(self.a(x)).relu() + self.skip)


class SizeOnSelf(Two):
    def forward(self, x):
        self.size = len(x)
        return self.b(self.n(self.a(x)).relu()) * torch.ones(self.size, 1)


class InAHook(Two):
    """As U-Nets that collect features with hooks."""

    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda module, args, output: setattr(module, "found", output.clone()))

    def forward(self, x):
        return self.b(self.n(self.a(x)).relu() + self.a.found)


class Writes(Two):
    def forward(self, x):
        x += 1
        return super().forward(x)


def calibrated(net, batches, method, **options):
    chip = chip_of(net, "gaussian:sigma=0.1", 1)
    reference = {} if method == "population" else {"reference": net}
    report = nabn.calibrate(chip, batches, method, **reference, **options)
    with torch.no_grad():
        return chip(X.clone()), report


@pytest.mark.parametrize("method", ["population", "paired", "common_mode", "low_rank"])
@pytest.mark.parametrize("make", [Two, OnSelf, SizeOnSelf, InAHook, Writes])
def test_any_split_gives_the_same(make, method, relative):
    torch.manual_seed(0)
    net = make().eval()
    before = X.clone()
    expected, _ = calibrated(net, [X], method)
    got, report = calibrated(net, list(X.split(SPLIT)), method)
    assert relative(got, expected) < 1e-4 and torch.equal(X, before)
    alone = make in (OnSelf, SizeOnSelf, InAHook)
    assert (report.n_passes > 1) == alone
    assert any("cannot run side by side" in note for note in report.notes) == alone


@pytest.mark.parametrize("first", [True, False])
def test_ways_that_part(first, relative):
    """A batch that skips a layer which the others have not come to yet, whatever the order of declaration."""

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            names = ["first", "second", "out"] if first else ["out", "second", "first"]
            for name in names:
                setattr(self, name, nn.Linear(6, 3 if name == "out" else 6))

        def forward(self, x):
            return self.out(self.second(self.first(x) if x.mean() < 0 else x))

    torch.manual_seed(0)
    net, x = Skips().eval(), torch.rand(8, 6)
    chip = chip_of(net, "gaussian:sigma=0.0", 0)
    batches = [x[:4], -x[4:]]
    nabn.calibrate(chip, batches, "paired", reference=net)
    for batch in batches:
        assert relative(chip(batch), net(batch)) < 1e-3


def test_context_variables_go_along():
    gain = contextvars.ContextVar("gain", default=1.0)
    gain.set(3.0)
    seen = []

    def forward(model, batch):
        seen.append(gain.get())
        return model(batch)

    torch.manual_seed(0)
    calibrated(Two().eval(), list(X.split(SPLIT)), "paired", forward_fn=forward)
    assert set(seen) == {3.0}


def test_what_a_forward_pass_sets_and_restores_is_restored():
    original = F.relu

    def patched(model, batch):
        with mock.patch.object(F, "relu", lambda x: x):
            return model(batch)

    def default(model, batch):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return model(batch)
        finally:
            torch.set_default_dtype(before)

    torch.manual_seed(0)
    for forward in (patched, default):
        for method in ("paired", "population"):
            calibrated(Two().eval(), list(X.split(SPLIT)), method, forward_fn=forward)
            assert F.relu is original and torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("way", ["lock", "pool"])
def test_locks_do_not_hang(way, monkeypatch, relative):
    monkeypatch.setattr(rehearsal, "_PATIENCE", 1.0)
    monkeypatch.setattr(rehearsal, "_TIMES", 0.0)
    lock, pool = threading.Lock(), ThreadPoolExecutor(1)

    def forward(model, batch):
        if way == "pool":
            return pool.submit(model, batch).result()
        with lock:
            return model(batch)

    torch.manual_seed(0)
    net = Two().eval()
    expected, _ = calibrated(net, [X], "paired")
    got, report = calibrated(net, list(X.split(SPLIT)), "paired", forward_fn=forward)
    assert relative(got, expected) < 1e-4 and report.n_passes > 1
    pool.shutdown()


def test_a_bare_except_does_not_hang(monkeypatch, relative):
    monkeypatch.setattr(lockstep, "HELD_BYTES", 0)

    def forward(model, batch):
        try:
            return model(batch)
        except:  # noqa: E722
            return model(batch)

    torch.manual_seed(0)
    net = Two().eval()
    expected, _ = calibrated(net, [X], "paired")
    got, _ = calibrated(net, list(X.split(SPLIT)), "paired", forward_fn=forward)
    assert relative(got, expected) < 1e-4


def test_threads_that_share_a_digital_model():
    torch.manual_seed(0)
    net = Two().eval()
    expected, _ = calibrated(net, list(X.split(SPLIT)), "paired")
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(calibrated, net, list(X.split(SPLIT)), "paired") for _ in range(8)]
        assert all(torch.equal(future.result()[0], expected) for future in futures)
    assert "forward" not in net.a.__dict__


def test_a_loader_without_a_length():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(X)

    torch.manual_seed(0)
    _, report = calibrated(Two().eval(), DataLoader(Endless(), batch_size=4), "population")
    assert report.n_samples == 12


def test_a_system_without_more_threads(monkeypatch, relative):
    """Batches one after the other then, at one thread each."""
    torch.manual_seed(0)
    net = Two().eval()
    expected, _ = calibrated(net, [X], "paired")
    start, before = threading.Thread.start, threading.active_count()

    def limited(thread):
        if threading.active_count() > before:
            raise RuntimeError("can't start new thread")
        start(thread)

    calibrated(net, list(X.split(SPLIT)), "paired")
    monkeypatch.setattr(threading.Thread, "start", limited)
    got, report = calibrated(net, list(X.split(SPLIT)), "paired")
    assert relative(got, expected) < 1e-4 and report.n_passes > 2


def test_a_chip_calibrated_with_a_function_of_the_callers_can_be_pickled():
    torch.manual_seed(0)
    net = Two().eval()
    chip = chip_of(net, "gaussian:sigma=0.1", 1)
    nabn.calibrate(chip, list(X.split(SPLIT)), "paired", reference=net, forward_fn=lambda model, batch: model(batch))
    assert torch.equal(pickle.loads(pickle.dumps(chip))(X), chip(X))


def test_batches_keep_their_class():
    class Named(dict):
        @property
        def images(self):
            return self["images"]

    torch.manual_seed(0)
    batches = [Named(images=part) for part in X.split(SPLIT)]
    net = Two().eval()
    expected, _ = calibrated(net, list(X.split(SPLIT)), "paired")
    got, _ = calibrated(net, batches, "paired", forward_fn=lambda model, batch: model(batch.images))
    assert torch.equal(got, expected)
