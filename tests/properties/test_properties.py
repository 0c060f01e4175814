"""What must hold for any network, any data, any split: conversion, programming, calibration, folding, files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import Moments
from aihwkit_nabn.simulator import parse_preset
from tests.chips import chip_of
from tests.properties.networks import batches, networks
from tests.tensors import equal, outputs

# Derandomized: a failure found on one machine is found on all.
anything = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SETTINGS = st.sampled_from(
    ["gaussian:sigma=0.1", "pcm", "pcm+stuck:p_off=0.05", "gaussian:sigma=0.05,relative_to=weight"]
)


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    scale = max(float(x.abs().max()) for x in b)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-4 * scale + 1e-6) for x, y in zip(a, b, strict=True))


def calibrate(chip: nn.Module, data: list[Tensor], method: str, model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network without BatchNorm has nothing for `population`
        return nabn.calibrate(chip, data, method=method, reference=model)


@anything
@given(networks(), batches(), st.integers(0, 2**40))
def test_a_chip_without_noise_computes_what_the_network_does(
    model: nn.Sequential, data: list[Tensor], seed: int
) -> None:
    before = copy.deepcopy(model.state_dict())
    chip = chip_of(model, "gaussian:sigma=0", seed)
    assert close(outputs(chip, data), outputs(model, data))
    assert equal(model.state_dict(), before)
    assert not any(module.training for module in chip.modules())
    converted = {entry.name for entry in chip.conversion_report.converted}
    assert converted == {n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


@anything
@given(networks(), batches(), SETTINGS, st.integers(0, 2**40), st.integers(0, 2**31))
def test_a_seed_is_a_chip_whatever_ran_before(
    model: nn.Sequential, data: list[Tensor], setting: str, seed: int, other: int
) -> None:
    first = outputs(chip_of(model, setting, seed), data)
    torch.manual_seed(other)
    state = torch.get_rng_state()
    chip = chip_of(model, setting, other)
    nabn.program_chip(chip, seed, "1d")
    nabn.drift_chip(chip, "1h")
    assert equal(outputs(chip, data), first)
    assert torch.equal(torch.get_rng_state(), state)


@anything
@given(networks(), batches(), SETTINGS, st.sampled_from(["population", "ema", "prior", "paired"]))
def test_calibration_is_undone_bit_for_bit_and_folds_without_change(
    model: nn.Sequential, data: list[Tensor], setting: str, method: str
) -> None:
    if method != "paired" and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        model.insert(1, nn.BatchNorm2d(model[0].out_channels).eval()) if isinstance(model[0], nn.Conv2d) else None
    chip = chip_of(model, setting, 3)
    raw = outputs(chip, data)
    try:
        report = calibrate(chip, data, method, model)
    except nabn.NabnError as error:
        assert "no BatchNorm" in str(error)
        assert equal(outputs(chip, data), raw)
        return
    live = outputs(chip, data)
    with nabn.calibration_disabled(chip):
        assert equal(outputs(chip, data), raw)
    assert equal(outputs(chip, data), live)
    fold = nabn.fold_calibration(chip)
    assert close(outputs(chip, data), live)
    fold.undo()
    assert equal(outputs(chip, data), live)
    report.undo()
    assert equal(outputs(chip, data), raw)


@anything
@given(networks(), batches())
def test_a_paired_noise_free_chip_stays_the_network(model: nn.Sequential, data: list[Tensor]) -> None:
    chip = chip_of(model, "gaussian:sigma=0", 1)
    calibrate(chip, data, "paired", model)
    assert close(outputs(chip, data), outputs(model, data))


@anything
@given(networks(), batches(), SETTINGS, st.integers(0, 2**40))
def test_files_give_the_chip_back(
    tmp_path: Path, model: nn.Sequential, data: list[Tensor], setting: str, seed: int
) -> None:
    chip = chip_of(model, setting, seed)
    calibrate(chip, data, "paired", model)
    loaded = nabn.load_chip(model, nabn.save_chip(chip, tmp_path / "chip"))
    assert equal(outputs(loaded, data), outputs(chip, data))


@settings(anything, max_examples=100)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(1, 4),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_moments_of_any_split_are_those_of_the_whole(
    sizes: list[int], channels: int, mean: float, std: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, channels, 3, 2, generator=generator) * std + mean for n in sizes]
    merged = Moments.empty(channels)
    for part in parts:
        merged = merged.merge(Moments.of(part, 1))
    whole = np.concatenate([np.moveaxis(p.double().numpy(), 1, -1).reshape(-1, channels) for p in parts])
    assert merged.count == len(whole)
    if len(whole):
        np.testing.assert_allclose(merged.mean.numpy(), whole.mean(0), rtol=1e-5, atol=1e-5 * std)
        np.testing.assert_allclose(merged.var.numpy(), whole.var(0), rtol=1e-4, atol=1e-9 * (std + abs(mean)) ** 2)


@settings(anything, max_examples=60)
@given(
    st.sampled_from(["gaussian", "pcm", "reram_wan", "stuck", "crossbar"]),
    st.integers(2, 12),
    st.integers(2, 12),
    st.floats(0, 0.5),
    st.floats(0, 0.1),
)
def test_settings_survive_a_file(name: str, inp_bits: int, out_bits: int, out_noise: float, w_noise: float) -> None:
    from aihwkit_nabn.simulator.config.json_form import config_from_json, config_to_json

    options = f"inp_bits={inp_bits},out_bits={out_bits},out_noise={out_noise!r},w_noise={w_noise!r}"
    config = parse_preset(f"{name}:{options}")
    again = config_from_json(config_to_json(config))
    assert str(again) == str(config) and again.noise_model == config.noise_model
    assert again.forward == config.forward and type(again) is type(config)


def test_the_strategies_cover_what_they_should() -> None:
    """A guard for the tests above: the networks drawn do hold groups, dilation, sharing, nesting and BatchNorm."""
    seen: set[str] = set()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(networks())
    def look(model: nn.Sequential) -> None:
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        seen.update("groups" for conv in convs if conv.groups > 1)
        seen.update("dilation" for conv in convs if conv.dilation != (1, 1))
        seen.update(conv.padding_mode for conv in convs)
        seen.update("nested" for module in model if isinstance(module, nn.Sequential))
        n_names = len([1 for _, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Conv2d)])
        seen.update(["shared"] if n_names > len(convs) else [])
        seen.update("norm" for module in model.modules() if isinstance(module, nn.BatchNorm2d))

    look()
    assert seen == {"groups", "dilation", "nested", "shared", "norm", "zeros", "reflect", "replicate", "circular"}
