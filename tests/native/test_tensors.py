"""Compiled code runs on the memory of plain tensors, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from aihwkit_nabn import native
from aihwkit_nabn.errors import NabnError

needs_library = pytest.mark.skipif(not native.is_available(), reason=f"no compiled library: {native.why_not()}")


class Named(Tensor):
    """A subclass that only has a name, such as torchvision's images."""


def plain() -> Tensor:
    return torch.ones(2, 3)


PLAIN: dict[str, Callable[[], Tensor]] = {
    "tensor": plain,
    "parameter": lambda: nn.Parameter(plain()),
    "subclass": lambda: plain().as_subclass(Named),
    "made in inference mode": lambda: torch.inference_mode()(plain)(),
    "view": lambda: torch.ones(4, 3)[1:3],
    "empty": lambda: torch.ones(0, 3),
}

OTHER: dict[str, Callable[[], Tensor]] = {
    "double": lambda: plain().double(),
    "half": lambda: plain().half(),
    "strided": lambda: torch.ones(3, 2).T,
    "negative view": lambda: torch._neg_view(plain()),
    "sparse": lambda: plain().to_sparse(),
    "sparse rows": lambda: plain().to_sparse_csr(),
    "mkldnn": lambda: plain().to_mkldnn(),
    "meta": lambda: plain().to("meta"),
    "fake": lambda: FakeTensorMode().from_tensor(plain()),
    "functional": lambda: torch._to_functional_tensor(plain()),
    "of two tensors": lambda: TwoTensor(plain(), plain()),
}

STAND_INS = ("meta", "fake", "functional", "of two tensors")


@needs_library
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_tensors_fit(kind: str) -> None:
    x = PLAIN[kind]()
    assert native.fits(x, 1.0, None, rows=x) and not native.is_recorded(x, None)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", OTHER)
def test_others_do_not(kind: str) -> None:
    x = OTHER[kind]()
    assert not native.fits(plain(), x)
    assert kind == "strided" or not native.fits(rows=x)
    assert native.is_recorded(plain(), x) == (kind in STAND_INS)


@needs_library
def test_of_rows_only_the_values_of_a_row_lie_side_by_side() -> None:
    whole = torch.ones(4, 6)
    assert native.fits(rows=whole[:, :3]) and not native.fits(whole[:, :3])
    assert not native.fits(rows=whole.T)


def test_switched_off_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NABN_NATIVE", "0")
    assert not native.fits(plain())


@contextmanager
def dual_numbers() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


def seen_by(way: str) -> tuple[bool, bool]:
    """Return what `fits` and `is_recorded` say in a function that torch runs in some way, of a tensor from outside."""
    found: list[tuple[bool, bool]] = []
    outside = plain()

    def look(x: Tensor) -> Tensor:
        found.append((native.fits(outside), native.is_recorded(outside)))
        return (x * 2).sum()

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return look(x)

    ways: dict[str, Callable[[], object]] = {
        "jit": lambda: torch.jit.trace(look, (plain(),), check_trace=False),
        "export": lambda: torch.export.export(Module(), (plain(),), strict=False),
        "make_fx": lambda: make_fx(look)(plain()),
        "make_fx before dispatch": lambda: make_fx(look, pre_dispatch=True)(plain()),
        "vmap": lambda: torch.vmap(look)(plain()),
        "grad": lambda: torch.func.grad(look)(plain()),
        "jvp": lambda: torch.func.jvp(look, (plain(),), (plain(),)),
    }
    modes: dict[str, Callable[[], object]] = {
        "fake": FakeTensorMode,
        "dual numbers": dual_numbers,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu"),
        "device": lambda: torch.device("cpu"),
        "counting": lambda: FlopCounterMode(display=False),
        "plain": torch.no_grad,
    }
    if way in ways:
        ways[way]()
    else:
        with modes[way]():
            found.append((native.fits(outside), native.is_recorded(outside)))
    return found[0]


@pytest.mark.parametrize(
    "way", ["jit", "export", "make_fx", "make_fx before dispatch", "vmap", "grad", "jvp", "fake", "dual numbers"]
)
def test_where_torch_records_nothing_fits(way: str) -> None:
    assert seen_by(way) == (False, True)
    assert seen_by("plain") == (native.is_available(), False)  # and afterwards all is as before


def test_a_mode_that_watches_sees_every_operation() -> None:
    assert seen_by("counting") == (False, False)


@needs_library
@pytest.mark.parametrize("way", ["inference", "autocast", "device"])
def test_other_modes_do_not_matter(way: str) -> None:
    assert seen_by(way) == (True, False)


def test_the_compiler_and_an_export_see_that_they_record() -> None:
    def asks(x: Tensor) -> Tensor:
        return x + 1.0 * native.fits(x) + 2.0 * native.is_recorded(x) + 4.0 * native.is_compiled()

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return asks(x)

    zero = torch.zeros(1)
    torch._dynamo.reset()
    assert torch.compile(asks, backend="eager", fullgraph=True)(zero) == 6.0
    for strict in (True, False):
        assert torch.export.export(Module(), (zero,), strict=strict).module()(zero) == 2.0
    assert asks(zero) == 1.0 * native.is_available()


def test_what_changes_from_call_to_call_is_not_recorded() -> None:
    native.check_runs("it", "stop it", plain())
    with FakeTensorMode(), pytest.raises(NabnError, match="^it cannot be traced, .*: stop it first$"):
        native.check_runs("it", "stop it")
    with pytest.raises(NabnError, match="^it cannot be traced"):
        native.check_runs("it", "stop it", OTHER["fake"]())
