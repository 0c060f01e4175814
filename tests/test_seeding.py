from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.seeding import RandomStream, check_seed, derive_seed, isolated_rng, private_rng
from tests.tensors import generator_states

CPU = torch.device("cpu")


def draws():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]


@pytest.mark.parametrize("seed", [0, 7, 2**63, 10**30, np.int64(5), np.uint8(3)])
def test_seeds_are_integers_from_zero(seed):
    assert check_seed("seed", seed) == int(seed) and type(check_seed("seed", seed)) is int


@pytest.mark.parametrize("seed", [-1, 1.0, True, np.bool_(True), None, "1", float("nan"), torch.tensor(1)])
def test_other_seeds_are_refused(seed):
    with pytest.raises(NabnError, match="chip must be an integer >= 0, got "):
        check_seed("chip", seed)


def test_derived_seeds_are_fixed_and_all_different():
    # Written down, so that no version and no machine gives other chips.
    assert derive_seed(0, "program", "layer1.conv", "") == 1855502693393741688
    seeds = [derive_seed(seed, *keys) for seed in range(20) for keys in ((), ("a",), ("a", "b"), ("ab",), (1,), (1, 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(np.int64(3), "a") == derive_seed(3, "a")


def test_isolated_block_draws_from_its_seed_and_leaves_the_generators_alone():
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    expected = draws()
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    with isolated_rng(derive_seed(0, "x")):
        first = draws()
        with isolated_rng(5):
            draws()
        second = draws()
    assert draws() == expected
    with isolated_rng(derive_seed(0, "x")):
        assert draws() == first and draws() == second


def test_seeds_beyond_what_torch_takes():
    found = []
    for seed in (2**63 - 1, 2**64 - 1, 2**64 + 5, 10**30):
        with isolated_rng(seed):
            found.append(tuple(draws()))
    assert len(set(found)) == len(found)


def test_isolated_block_restores_after_an_error():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt), isolated_rng(3):
        draws()
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), state)


def test_stream_restarts_and_goes_on():
    stream = RandomStream(4)
    first = torch.rand(3, generator=stream.generator(CPU))
    assert torch.equal(first, torch.rand(3, generator=torch.Generator().manual_seed(4)))
    second = torch.rand(3, generator=stream.generator(CPU))
    assert not torch.equal(first, second)
    stream.restart()
    assert torch.equal(torch.rand(3, generator=stream.generator(CPU)), first)
    stream.restart(5)
    assert stream.seed == 5 and not torch.equal(torch.rand(3, generator=stream.generator(CPU)), first)


def test_stream_stands_in_for_the_global_generator():
    stream = RandomStream(4)
    state = torch.get_rng_state()
    with stream.as_global():
        first = torch.rand(2)
    with pytest.raises(RuntimeError), stream.as_global(torch.ones(1)):
        second = torch.rand(2)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=torch.Generator().manual_seed(4)))


def test_a_stream_stands_aside_where_torch_records():
    stream = RandomStream(4)
    graph = make_fx(lambda x: drawn_from(stream, x))(torch.ones(3))
    torch.manual_seed(1)
    first = graph(torch.ones(3))
    assert not torch.equal(graph(torch.ones(3)), first)
    torch.manual_seed(1)
    assert torch.equal(graph(torch.ones(3)), first)


def drawn_from(stream, x):
    with stream.as_global(x):
        return x + torch.rand_like(x)


def in_threads(*work):
    """Run functions at the same time, each in a thread of its own, and return what they returned."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(function) for function in work]]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_blocks_of_several_threads_leave_the_generators_alone(last):
    """Whichever is left last."""
    before = generator_states()
    blocks = [isolated_rng(seed) for seed in range(3)]
    for block in blocks:
        block.__enter__()
    order = [index for index in range(3) if index != last] + [last]
    for index in order:
        draws()
        blocks[index].__exit__(None, None, None)
    assert generator_states() == before


def test_a_private_block_draws_what_an_isolated_one_does():
    for seed in (3, 2**63, 10**30):
        with isolated_rng(seed):
            expected = draws()
        with private_rng(seed, torch_only=False):
            assert draws() == expected
        with private_rng(seed):
            assert torch.rand(3).tolist() == expected[:3]


@pytest.mark.parametrize("torch_only", [True, False])
def test_private_blocks_of_several_threads_do_not_disturb_each_other(torch_only):
    n, threads = 3, 4
    gate = Barrier(threads if torch_only else 1)

    def draw():
        return torch.rand(3).tolist() if torch_only else draws()

    def work(seed):
        found = []
        for step in range(20):
            with private_rng(derive_seed(seed, step), torch_only=torch_only):
                for _ in range(n):
                    gate.wait()  # all of them are inside; where they must wait for each other, only one
                    found += draw()
        return found

    before = generator_states()
    found = in_threads(*(partial(work, seed) for seed in range(threads)))
    assert generator_states() == before
    gate = Barrier(1)
    assert found == [work(seed) for seed in range(threads)]


def test_other_threads_draw_from_the_global_generator():
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    with private_rng(5):
        assert torch.equal(in_threads(lambda: torch.rand(3))[0], expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copied_stream_goes_on_from_the_same_place(copied):
    stream = RandomStream(4)
    torch.rand(3, generator=stream.generator(CPU))
    twin = copied(stream)
    expected = torch.rand(3, generator=stream.generator(CPU))
    assert torch.equal(torch.rand(3, generator=twin.generator(CPU)), expected)
    assert copied(RandomStream(9)).seed == 9
