"""Finite levels, several devices per weight, device-to-device spread; tolerances are four standard errors."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip import chip_state
from aihwkit_nabn.errors import NabnError
from aihwkit_nabn.noise import NOISE_MODELS, ComposedNoise
from aihwkit_nabn.noise.conductance import ConductanceNoise
from aihwkit_nabn.noise.gaussian import GaussianWeightNoise
from aihwkit_nabn.noise.pcm import PCM
from aihwkit_nabn.noise.reram import ReRAMCMO, ReRAMWan
from aihwkit_nabn.simulator import parse_preset
from tests.chips import aged, chip_of, tiled

NAMES = [name for name in NOISE_MODELS.names() if issubclass(NOISE_MODELS.get(name), ConductanceNoise)]
COUNT = 20_000
HOUR = 3600.0
CELL = {"levels": 16, "devices_per_weight": 2, "device_spread": 0.05}

of_each = pytest.mark.parametrize("name", NAMES)


def model_of(name: str, **options: float) -> ConductanceNoise:
    return NOISE_MODELS.get(name)(**options)


def weights_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def level(x: float, count: int = COUNT) -> Tensor:
    """Return weights of value x behind a 1 and a -1, which fix the mapping of pairs and of single devices."""
    return torch.cat([torch.tensor([1.0, -1.0]), torch.full((count,), x)])[None].double()


def assert_spread(sample: Tensor, std: float) -> None:
    assert abs(float(sample.std()) / std - 1) < 4 / math.sqrt(2 * sample.numel())


def test_all_conductance_models_are_here() -> None:
    assert {"pcm", "hermes", "reram_wan", "reram_cmo"} <= set(NAMES)


@of_each
def test_options_are_in_signature_preset_and_text(name: str) -> None:
    assert [*inspect.signature(NOISE_MODELS.get(name)).parameters][-3:] == [*CELL]
    text = ",".join(f"{option}={value}" for option, value in CELL.items())
    model = parse_preset(f"{name}:{text}").noise_model
    assert model == model_of(name, **CELL) != model_of(name)
    assert {option: model.options()[option] for option in CELL} == CELL
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin == model and repr(twin) == repr(model)
    assert "levels" not in str(model_of(name)) and "levels=16" in str(model)


@of_each
def test_levels_are_equally_spaced_and_noise_acts_on_top_of_them(name: str) -> None:
    weights = weights_of(40, 500)
    rounded, _ = aged(model_of(name, levels=9, noise_scale=0), weights)
    zero, lowest, largest = model_of(name).conductance_range(weights)
    steps = (rounded - lowest) / ((largest - lowest) / 8)
    assert torch.allclose(steps, steps.round(), atol=1e-9) and (rounded.abs() - largest).abs().min() < 1e-9
    assert len(steps.round().unique()) == (9 if lowest < 0 else 17) and zero <= max(lowest, 0)
    again, _ = aged(model_of(name), rounded)
    assert torch.equal(aged(model_of(name, levels=9), weights)[0], again)


@of_each
def test_rounding_errors_are_uniform(name: str) -> None:
    weights = weights_of(40, 500)
    error = aged(model_of(name, levels=32, noise_scale=0), weights)[0] - weights
    _, lowest, largest = model_of(name).conductance_range(weights)
    step = float(largest - lowest) / 31
    assert error.abs().max() <= step / 2 * (1 + 1e-9)
    # A uniform variable's square has the variance 4/5 of its mean squared.
    assert abs(float(error.square().mean()) / (step**2 / 12) - 1) < 4 * math.sqrt(0.8 / error.numel())
    assert abs(float(error.mean())) < 4 * step / math.sqrt(12 * error.numel())


@of_each
@pytest.mark.parametrize("t_inference", [None, HOUR])
def test_n_devices_have_a_variance_of_one_nth(name: str, t_inference: float | None) -> None:
    """After drift and read noise too, since each device has its own."""
    one, four = (aged(model_of(name, devices_per_weight=n), level(0.5), t_inference)[0][0, 2:] for n in (1, 4))
    relative = float(four.var() / one.var()) * 4 - 1
    # Of variances of samples that are not quite normal.
    tails = [float(((part - part.mean()) / part.std()).pow(4).mean()) - 1 for part in (one, four)]
    assert abs(relative) < 4 * math.sqrt(sum(tails) / COUNT)
    # Drift rescales each device's tile by its own largest weight, which has noise of its own: common to a tile.
    assert abs(float(four.mean() - one.mean())) < 0.02


@of_each
def test_one_plain_device_is_the_model_as_it_was(name: str) -> None:
    weights = weights_of(8, 12)
    for t_inference in (None, HOUR):
        plain = aged(model_of(name), weights, t_inference)[0]
        assert torch.equal(
            plain, aged(model_of(name, devices_per_weight=1, device_spread=0.0), weights, t_inference)[0]
        )


@of_each
def test_spread_from_device_to_device_is_relative_to_what_the_device_conducts(name: str) -> None:
    model = model_of(name, device_spread=0.1, noise_scale=0)
    zero, *_ = model.conductance_range(level(0.5))
    for x in (0.5, -0.25):
        chip = aged(model, level(x))[0][0, 2:]
        assert_spread(chip, 0.1 * abs(x - float(zero)))
        assert abs(float(chip.mean()) - x) < 4 * 0.1 * abs(x - float(zero)) / math.sqrt(COUNT)


@of_each
def test_the_variance_is_the_sum_of_both_spreads(name: str) -> None:
    zero, *_ = model_of(name).conductance_range(level(0.5))
    alone = aged(model_of(name), level(0.5))[0][0, 2:]
    chip = aged(model_of(name, device_spread=0.05), level(0.5))[0][0, 2:]
    within, mean = float(alone.var()), float(alone.mean() - zero)
    assert_spread(chip, math.sqrt(0.05**2 * mean**2 + within * (1 + 0.05**2)))


def row(name: str, **options: float) -> nn.Module:
    """Return a chip's layer of equal weights behind those that fix the mapping."""
    layer = nn.Linear(COUNT + 2, 1, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(level(0.5))
    preset = tiled(name, COUNT + 2, 4)
    preset.drift_compensation = None
    preset.noise_model = model_of(name, **options)
    return nabn.convert_to_noise_aware(nn.Sequential(layer), preset)


def cycles(chip: nn.Module, seed: int, n: int) -> Tensor:
    """Return the weights after each of n programmings of one chip, ``[n, weights]``."""
    return torch.stack([nabn.program_chip(chip, seed, cycle=k)[0].weight[0, 2:].detach().clone() for k in range(n)])  # type: ignore[index]


@of_each
def test_programming_again_draws_one_spread_anew_and_keeps_the_other(name: str) -> None:
    n = 6
    found = cycles(row(name, device_spread=0.2), 7, n).double()
    alone = cycles(row(name), 7, n).double()
    zero = float(model_of(name).conductance_range(level(0.5))[0])
    mean = float(alone.mean()) - zero
    # Within a device: the model's own spread, with each device's factor on it.
    within = float(found.var(0).mean())
    assert abs(within / (float(alone.var(0).mean()) * (1 + 0.2**2)) - 1) < 4 * math.sqrt(4 / (COUNT * (n - 1)))
    # Between devices: the spread of the factors, and what is left of the model's in a mean of n.
    between = float(found.mean(0).var()) - within / n
    assert abs(between / (0.2 * mean) ** 2 - 1) < 4 * math.sqrt(2 / COUNT) * (1 + within / n / (0.2 * mean) ** 2)


def test_same_chip_same_cycle_same_weights() -> None:
    chip = row("pcm", device_spread=0.1)
    nabn.program_chip(chip, 7, "1h", cycle=2)
    first = chip[0].weight.detach().clone()  # type: ignore[index]
    assert chip_state(chip).cycle == 2
    nabn.drift_chip(chip, "1d")
    nabn.program_chip(chip, 7, "1h")
    assert not torch.equal(chip[0].weight, first)  # type: ignore[index]
    nabn.program_chip(chip, 7, "1h", cycle=2)
    assert torch.equal(chip[0].weight, first)  # type: ignore[index]
    with pytest.raises(NabnError, match="cycle must be an integer >= 0, got -1"):
        nabn.program_chip(chip, 7, cycle=-1)


@pytest.mark.parametrize(
    "preset", ["stuck:p_off=0.1", "temperature", "thermal", "reference_current", "variational:schedule=constant"]
)
def test_what_belongs_to_the_chip_is_not_drawn_anew(preset: str) -> None:
    chip = chip_of(nn.Sequential(nn.Linear(30, 20)).eval(), preset)
    first = chip[0].weight.detach().clone()
    assert torch.equal(nabn.program_chip(chip, 3, "1h", cycle=1)[0].weight, first)  # type: ignore[index]


@pytest.mark.parametrize("preset", ["gaussian", "pcm", "reram_wan"])
def test_faults_stay_where_they_are_while_the_others_are_drawn_anew(preset: str) -> None:
    chip = chip_of(nn.Sequential(nn.Linear(30, 20)).eval(), f"{preset}+stuck:p_off=0.1")
    tile = next(iter(chip[0].analog_tiles()))
    kept = {name: tensor.clone() for name, tensor in tile.drift_noise_parameters[0].items() if "stuck" in name}
    first = chip[0].weight.detach().clone()
    nabn.program_chip(chip, 3, "1h", cycle=1)
    assert not torch.equal(chip[0].weight, first) and len(kept) == 2
    assert all(torch.equal(tile.drift_noise_parameters[0][name], tensor) for name, tensor in kept.items())


def test_aihwkits_own_models_are_drawn_anew_too() -> None:
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

    preset = tiled("pcm", 30, 20)
    preset.noise_model = PCMLikeNoiseModel()
    chip = nabn.convert_to_noise_aware(nn.Sequential(nn.Linear(30, 20)).eval(), preset)
    weights = [nabn.program_chip(chip, 3, cycle=k)[0].weight.detach().clone() for k in (0, 1, 2, 1)]  # type: ignore[index]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[3])


@of_each
def test_chip_files_hold_cells(name: str, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(12, 5)).eval()
    options = ",".join(f"{option}={value}" for option, value in CELL.items())
    chip = nabn.convert_to_noise_aware(net, parse_preset(f"{name}:{options}"))
    nabn.program_chip(chip, 3, "1h", cycle=1)
    twin = nabn.load_chip(net, nabn.save_chip(chip, tmp_path / "chip.safetensors"))
    assert chip_state(twin) == chip_state(chip) and torch.equal(twin[0].weight, chip[0].weight)  # type: ignore[index]
    for one in (chip, twin):
        nabn.drift_chip(one, "1d")
    assert torch.equal(twin[0].weight, chip[0].weight)  # type: ignore[index]


@of_each
@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (3,), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cells_of_any_shape_and_type(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weights = torch.zeros(shape, dtype=dtype) if shape == (1, 1) else weights_of(*shape).to(dtype)
    for t_inference in (None, 0.0, HOUR):
        chip, _ = aged(model_of(name, **CELL), weights, t_inference)
        assert chip.shape == weights.shape and chip.dtype == dtype and torch.isfinite(chip).all()


@pytest.mark.parametrize("device", [ReRAMWan(), PCM(device_spread=0.1), ReRAMCMO(devices_per_weight=2)], ids=repr)
def test_other_effects_of_a_composition_outlive_a_drift(device: ConductanceNoise) -> None:
    """Models that keep their devices apart from the weights once gave the weights of the devices alone."""
    weights = weights_of(50, 60)
    alone = aged(device, weights, HOUR)[0]
    with_noise = aged(ComposedNoise([device, GaussianWeightNoise(0.3)]), weights, HOUR)[0]
    assert_spread(with_noise - alone, 0.3 * float(weights.abs().max()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels must be an integer >= 2, got 1"),
        ({"levels": 2.5}, "levels must be an integer >= 2, got 2.5"),
        ({"devices_per_weight": 0}, "devices_per_weight must be an integer >= 1, got 0"),
        ({"device_spread": -0.1}, "device_spread must be a finite number >= 0, got -0.1"),
    ],
)
@of_each
def test_what_no_cell_can_be_is_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(NabnError, match=message):
        model_of(name, **options)
