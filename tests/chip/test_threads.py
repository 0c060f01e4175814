"""Chips programmed and run in several threads are those of their seeds, and nobody's generators move."""

from __future__ import annotations

import copy
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import Tensor, nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.simulator import parse_preset
from tests.tensors import equal, generator_states, tensors_of

THREADS, SEEDS = 4, 6


class DrawsAnywhere(BaseNoiseModel):
    """Somebody's own noise model, which draws from whatever is at hand."""

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Any]]:
        noise = torch.randn_like(weights) + torch.from_numpy(np.random.randn(*weights.shape)).to(weights)
        return weights + 0.1 * noise + 0.1 * random.random() + 0.01 * F.dropout(torch.ones_like(weights), 0.3), [None]

    def apply_drift_noise(self, weights: Tensor, parameters: Any, t_inference: float) -> Tensor:
        return weights + 0.1 * torch.rand(weights.shape) + 0.01 * np.random.rand()


def digital() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


def of_aihwkit(noise_model: BaseNoiseModel | None = None) -> nn.Module:
    config = TorchInferenceRPUConfig() if noise_model is None else TorchInferenceRPUConfig(noise_model=noise_model)
    config.forward.out_noise = 0.2
    return convert_to_analog(digital(), config).eval()


def of_preset(text: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nabn.convert_to_noise_aware(digital(), parse_preset(text))


PRESETS = (
    *("pcm", "gaussian", "reram_cmo", "hermes", "temperature", "variational", "pcm+stuck:p_off=0.05"),
    *("crossbar", "crossbar:input_range=false", "pcm:out_noise=0.1"),
)
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=[*PRESETS, "aihwkit", "somebody's"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "aihwkit":
        return of_aihwkit()
    return of_aihwkit(DrawsAnywhere()) if request.param == "somebody's" else of_preset(request.param)


def life(model: nn.Module, seed: int) -> list[Tensor]:
    """Program a chip, let it age, run it; return all that it held and answered."""
    chip, found = copy.deepcopy(model), []
    nabn.program_chip(chip, seed, "1h")
    found += tensors_of(chip).values()
    with torch.no_grad():
        found += [chip(IMAGES), chip(IMAGES)]
        nabn.drift_chip(chip, "2d")
        nabn.set_read_noise_seed(chip, seed + 1)
        found += [*tensors_of(chip).values(), chip(IMAGES), chip(IMAGES)]
    return [tensor.clone() for tensor in found]


def together(work: Any, seeds: Any) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, seeds))


@pytest.mark.filterwarnings("ignore")  # filters of warnings are shared by threads, too
def test_chips_are_those_of_their_seeds(model: nn.Module) -> None:
    seeds = range(SEEDS)
    expected = [life(model, seed) for seed in seeds]
    before = generator_states()
    # Twice each, in another order.
    found = together(lambda seed: life(model, seed), [*reversed(seeds), *seeds])
    assert generator_states() == before
    found = [found[:SEEDS][::-1], found[SEEDS:]]
    for again in found:
        for seed in seeds:
            assert equal(again[seed], expected[seed]), seed


@pytest.mark.filterwarnings("ignore")
def test_whoever_draws_and_seeds_meanwhile_does_not_matter() -> None:
    chip = of_preset("pcm:out_noise=0.1")
    expected, done = [life(chip, seed) for seed in range(SEEDS)], Event()

    def disturb() -> None:
        while not done.is_set():
            torch.manual_seed(0)
            torch.rand(1)
            np.random.seed(0)

    thread = Thread(target=disturb)
    thread.start()
    try:
        found = [life(chip, seed) for seed in range(SEEDS)]
    finally:
        done.set()
        thread.join()
    assert equal(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_evaluations_are_those_of_their_seeds() -> None:
    """Each shuffles its calibration images."""
    data = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    model = digital()

    def evaluate(seed: int) -> list[dict[str, float]]:
        twin = copy.deepcopy(model)
        result = nabn.evaluate(
            twin,
            scenarios=[nabn.Scenario(name="noisy", rpu_config=parse_preset("pcm:out_noise=0.1"))],
            methods=["population"],
            chips=2,
            seed=seed,
            eval_fn=lambda network: {"sum": float(network(IMAGES).square().sum())},
            calibration_batches=torch.utils.data.DataLoader(data, batch_size=5, shuffle=True),
            forward_fn=lambda network, batch: network(batch),
            max_samples=10,
            progress=False,
        )
        return [record.metrics for record in result.records]

    seeds, before = range(4), generator_states()
    expected = [evaluate(seed) for seed in seeds]
    assert together(evaluate, [*seeds, *seeds]) == [*expected, *expected]
    assert generator_states() == before
