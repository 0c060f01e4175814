from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aihwkit_nabn.data.state_dicts import describe, find_weights
from aihwkit_nabn.errors import NabnError

State = dict[str, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Linear(4, 2)))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def taken(content: object, **options: str | None) -> State:
    return find_weights(content, network().state_dict(), "weights x", **options).state


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


PARTS = ["module.", "_orig_mod.", "model.", "net.", "backbone.encoder.", "student_1."]
WRAPPERS = [(), ("state_dict",), ("model",), ("model_state_dict",), ("network",), ("checkpoint", "net", "weights")]


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=".".join)
@pytest.mark.parametrize("prefix", ["", *PARTS, *map("".join, itertools.permutations(PARTS[:4], 2))])
def test_any_wrapper_and_any_prefixes_are_taken_off(wrapper: tuple[str, ...], prefix: str) -> None:
    state = network(1).state_dict()
    optimizer = {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1}]}
    content: dict = prefixed(state, prefix)
    for key in reversed(wrapper):
        content = {key: content, "epoch": 3, "optimizer": optimizer}
    assert same(taken(content), state)


def test_a_part_that_was_compiled_by_itself() -> None:
    state = network(1).state_dict()
    content = {name.replace("2.", "2._orig_mod.", 1) if name.startswith("2.") else name: t for name, t in state.items()}
    assert content.keys() != state.keys() and same(taken({"state_dict": prefixed(content, "model.")}), state)


class Module(nn.Module):
    """What a Lightning module is: the network, and a loss and metrics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(2))


def test_lightning_leaves_out_and_names_what_is_not_of_the_network() -> None:
    module = Module()
    found = find_weights(
        {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.5"}, network().state_dict(), "weights x"
    )
    assert same(found.state, module.net.state_dict()) and found.place == "state_dict.net"
    assert found.notes("weights x") == ["weights x: left out, not of this network: loss.weight"]


def test_averaged_models_of_torch() -> None:
    averaged = AveragedModel(network(1), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(network(2))
    found = find_weights(averaged.state_dict(), network().state_dict(), "weights x")
    assert same(found.state, averaged.module.state_dict()) and found.averaged and found.notes("x") == []


BOTH = {
    "torchvision": ("model", "model_ema"),
    "timm": ("state_dict", "state_dict_ema"),
    "others": ("state_dict", "ema_state_dict"),
    "yolo": ("model", "ema"),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("keys", BOTH.values(), ids=BOTH)
def test_of_trained_and_averaged_weights_the_trained_ones_unless_asked(keys: tuple[str, str], prefix: str) -> None:
    plain, averaged = network(1).state_dict(), network(2).state_dict()
    ema = prefixed(averaged, prefix) | ({"n_averaged": torch.tensor(3)} if prefix else {})
    content = {keys[0]: plain, keys[1]: ema}
    place = f"{keys[1]}.{prefix}".rstrip(".")
    assert same(taken(content), plain) and same(taken(content, take="model"), plain)
    assert same(taken(content, take="ema"), averaged) and same(taken(content, take=place), averaged)
    names = network().state_dict()
    assert find_weights(content, names, "x").notes("x") == [f"x: {keys[0]} was taken; --take NAME takes {place}"]
    assert find_weights(content, names, "x", take="ema").notes("x") == [
        f"x: {place} (averaged) was taken; --take NAME takes {keys[0]}"
    ]


def test_mmengine_puts_the_averages_under_state_dict() -> None:
    plain, averaged = network(1).state_dict(), network(2).state_dict()
    content = {"meta": {}, "message_hub": {}, "state_dict": averaged, "ema_state_dict": prefixed(plain, "module.")}
    assert same(taken(content, take="ema"), averaged) and same(taken(content, take="model"), plain)


def test_a_name_with_the_letters_ema_in_it_is_no_average() -> None:
    content = {"semantic.schema": network(1).state_dict()}
    assert not find_weights(content, network().state_dict(), "x").averaged


def test_parameters_alone_that_were_averaged() -> None:
    plain, averaged = network(1).state_dict(), network(2).state_dict()
    ema = {name: averaged[name] for name, _ in network().named_parameters()}
    assert same(taken({"model": plain, "ema": ema}, take="ema"), ema)


def test_two_networks_alike_are_ambiguous_but_not_the_same_one_twice() -> None:
    one, two = network(1).state_dict(), network(2).state_dict()
    content = {"state_dict": prefixed(one, "student.") | prefixed(two, "teacher.")}
    with pytest.raises(NabnError) as error:
        taken(content)
    assert str(error.value) == (
        "weights x holds several weights for this network, in state_dict.student, state_dict.teacher; "
        "say which with --take NAME"
    )
    assert same(taken(content, take="state_dict.teacher"), two)
    assert same(taken({"model": one, "best_model": copy.deepcopy(one)}), one)


def test_what_fits_nothing_is_said_with_what_the_file_holds() -> None:
    content = {"epoch": 3, "state_dict": {"far.weight": torch.zeros(1)}, "args": [1]}
    with pytest.raises(NabnError) as error:
        taken(content)
    assert str(error.value) == (
        "weights x is of another network: it holds epoch (int), state_dict (1 tensors (far.weight)), args (list), "
        "and the network has 0.weight, 0.bias, 1.weight and 8 more"
    )
    for empty in ({"epoch": 3}, {}, [1], torch.zeros(2), None):
        with pytest.raises(NabnError, match="holds no state dict but (epoch|nothing|a )"):
            taken(empty)
    state = {"model": network().state_dict()}
    with pytest.raises(NabnError, match="has no weights 'ema' for this network.*; it has model$"):
        taken(state, take="ema")
    with pytest.raises(NabnError, match="has no weights 'modl' for this network, did you mean 'model'"):
        taken(state, take="modl")


def test_a_file_is_described_in_a_line() -> None:
    content = {f"key {number}": {"a": torch.zeros(1)} for number in range(100)}
    assert "\n" not in describe(content) and len(describe(content)) < 500
