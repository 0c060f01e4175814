"""Code that draws from torch's global generators draws from ours, the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aihwkit_nabn.drawing import current_generator, drawing_from, lending


def ones() -> Tensor:
    return torch.ones(4, 5)


def half() -> Tensor:
    return torch.full((4, 5), 0.5)


def filled(fill: str, *limits: float) -> Callable[[], Tensor]:
    return lambda: getattr(torch.empty(4, 5), fill)(*limits)


def initialised(name: str, *limits: float) -> Callable[[], Tensor]:
    return lambda: getattr(nn.init, name)(torch.empty(4, 5), *limits)


DRAWS: dict[str, Callable[[], Tensor]] = {
    "rand": lambda: torch.rand(4, 5),
    "randn": lambda: torch.randn((4, 5), dtype=torch.float64),
    "randn into": lambda: torch.randn(4, 5, out=torch.empty(4, 5)),
    "randint": lambda: torch.randint(2**40, (7,)),
    "randperm": lambda: torch.randperm(9),
    "normal": lambda: torch.normal(ones(), 2.0),
    "normal of a shape": lambda: torch.normal(0.0, 1.0, (3,)),
    "bernoulli": lambda: torch.bernoulli(half()),
    "multinomial": lambda: torch.multinomial(ones(), 3),
    "poisson": lambda: torch.poisson(ones()),
    "binomial": lambda: torch.binomial(ones(), half()),
    "rand_like": lambda: torch.rand_like(ones(), dtype=torch.float64),
    "rand_like of another layout": lambda: torch.rand_like(ones().T),
    "randn_like": lambda: torch.randn_like(ones()),
    "randn_like of a gradient": lambda: torch.randn_like(ones(), requires_grad=True),
    "randint_like": lambda: torch.randint_like(ones(), 1000),
    "randint_like from": lambda: torch.randint_like(ones(), low=-50, high=1000),
    "normal_": filled("normal_"),
    "uniform_": filled("uniform_", -1.0, 3.0),
    "random_": filled("random_", 100),
    "bernoulli_": filled("bernoulli_", 0.3),
    "exponential_": filled("exponential_", 2.0),
    "geometric_": filled("geometric_", 0.3),
    "cauchy_": filled("cauchy_"),
    "log_normal_": filled("log_normal_"),
    "Tensor.bernoulli": lambda: half().bernoulli(),
    "Tensor.multinomial": lambda: ones().multinomial(2),
    "init.normal_": initialised("normal_"),
    "init.uniform_": initialised("uniform_", 0.0, 2.0),
    "init.kaiming_uniform_": initialised("kaiming_uniform_"),
    "init.trunc_normal_": initialised("trunc_normal_"),
    "init.orthogonal_": initialised("orthogonal_"),
    "Linear": lambda: nn.Linear(4, 5).weight,
    "Gamma": lambda: torch.distributions.Gamma(ones(), ones()).sample(),
    "Dirichlet": lambda: torch.distributions.Dirichlet(ones()).sample(),
    "Laplace": lambda: torch.distributions.Laplace(ones(), ones()).sample(),
    "Dropout": lambda: nn.Dropout()(ones()),
    "Dropout1d": lambda: nn.Dropout1d()(ones()),
    "AlphaDropout": lambda: nn.AlphaDropout()(ones()),
    "dropout": lambda: torch.dropout(ones(), 0.5, True),
    "native_dropout": lambda: torch.native_dropout(ones(), 0.5, True)[0],
    "RReLU": lambda: nn.RReLU().train()(-ones()),
    "gumbel_softmax": lambda: F.gumbel_softmax(ones()),
    "attention": lambda: F.scaled_dot_product_attention(*[torch.ones(1, 4, 5)] * 3, dropout_p=0.5),
    "global generator": lambda: torch.rand(3, generator=torch.random.default_generator),
}


def mixed(draw: Callable[[], Tensor]) -> list[Tensor]:
    """Numbers before it and behind it come from the same place, one after the other."""
    return [torch.rand(3), draw().detach(), torch.rand(3)]


@pytest.mark.parametrize("name", DRAWS)
def test_the_numbers_are_those_of_the_global_generator(name: str) -> None:
    draw, before = DRAWS[name], torch.get_rng_state()
    try:
        torch.manual_seed(7)
        expected = mixed(draw)
    finally:
        torch.set_rng_state(before)
    with drawing_from(torch.Generator().manual_seed(7)):
        found = mixed(draw)
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride() and torch.equal(ours, theirs)


def test_a_generator_that_is_given_is_drawn_from() -> None:
    own, given = torch.Generator().manual_seed(7), torch.Generator().manual_seed(8)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(8))
    with drawing_from(own):
        assert torch.equal(torch.rand(3, generator=given), expected)
    assert torch.equal(own.get_state(), torch.Generator().manual_seed(7).get_state())


def test_blocks_within_each_other() -> None:
    outer, inner = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    assert current_generator() is torch.random.default_generator
    with drawing_from(outer):
        assert current_generator() is outer
        first = torch.rand(2)
        with pytest.raises(KeyError), drawing_from(inner):
            assert current_generator() is inner
            second = torch.rand(2)
            raise KeyError
        assert current_generator() is outer
        first = torch.cat([first, torch.rand(2)])
    assert current_generator() is torch.random.default_generator
    assert torch.equal(first, torch.rand(4, generator=outer.manual_seed(1)))
    assert torch.equal(second, torch.rand(2, generator=inner.manual_seed(2)))


def test_other_devices_are_left_alone() -> None:
    with drawing_from(torch.Generator().manual_seed(1)), torch.device("meta"):
        assert torch.rand(3).is_meta and torch.empty(2).normal_().is_meta and torch.rand_like(torch.ones(2)).is_meta


def test_a_generator_is_lent_for_a_while() -> None:
    own, state = torch.Generator().manual_seed(3), torch.get_rng_state()
    with lending(own):
        found = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([found, torch.rand(3, generator=own)]), torch.rand(6, generator=own.manual_seed(3)))
