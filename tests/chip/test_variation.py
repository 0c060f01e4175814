"""Noise that moves while the network runs: counting, restarting, copying, drifting, calibrating."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip.variation import count_samples, samples_processed
from aihwkit_nabn.nn.layers import named_analog_layers
from aihwkit_nabn.noise.variational import VariationalNoise
from aihwkit_nabn.seeding import derive_seed
from aihwkit_nabn.simulator import parse_preset
from tests.chips import tiled
from tests.tensors import equal

RAMP = "variational:sigma=0.1,start=0.2,period_samples=20"
SETTINGS = {
    "ramp": RAMP,
    "walk, turning": "variational:schedule=walk,period_samples=30,turnover_samples=12",
    "pcm, stuck": "pcm+variational:sigma=0.2,schedule=sine,period_samples=16+stuck:p_off=0.1,p_on=0.05",
}


def weights_of(chip: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.clone() for layer in named_analog_layers(chip).values()]


def chip_of(net: nn.Module, setting: str = RAMP, seed: int = 3) -> nn.Module:
    return nabn.program_chip(nabn.convert_to_noise_aware(net, tiled(setting, 16, 512)), seed=seed)


def trace(chip: nn.Module, images, sizes=(4, 1, 7, 9)) -> list[torch.Tensor]:
    with torch.no_grad():
        return [chip(images(size, index)) for index, size in enumerate(sizes)]


def test_weights_follow_the_definition_sample_by_sample(net, images):
    chip = chip_of(net, "variational:sigma=0.1,start=0.2,period_samples=20,turnover_samples=8")
    tiles = [tile for layer in named_analog_layers(chip).values() for tile in layer.analog_tiles()]
    targets = [tile.reference_combined_weights.double().numpy() for tile in tiles]
    for before, size in ((0, 4), (4, 1), (5, 9), (14, 30), (44, 1)):
        chip(images(size))
        strength = 0.1 * (0.2 + 0.8 * min(before / 20, 1.0))
        j, f = divmod(before / 8, 1.0)
        for tile, target in zip(tiles, targets, strict=True):
            state = tile.drift_noise_parameters[0]
            model, w_max = tile.rpu_config.noise_model, tile.rpu_config.noise_model.layer_max.numpy()
            knots = []
            for knot in (int(j), int(j) + 1):
                seed = derive_seed(int(state["seed"]), "pattern", knot)
                unit = torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).numpy()
                knots.append(state["pattern"].numpy() / w_max if knot == 0 else unit)
            unit = np.cos(np.pi / 2 * f) * knots[0] + np.sin(np.pi / 2 * f) * knots[1]
            assert np.allclose(tile.tile.weight.detach().numpy(), target + strength * w_max * unit, atol=1e-5)
            assert isinstance(model, VariationalNoise)
    assert samples_processed(chip) == 45


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_chip_can_start_anew_whatever_ran_before(net, images, setting):
    chip = chip_of(net, setting)
    start = weights_of(chip)
    torch.manual_seed(0)
    first = trace(chip, images)
    assert samples_processed(chip) == 21 and not equal(weights_of(chip), start)
    torch.manual_seed(99)
    trace(chip, images, (3, 5))
    nabn.set_read_noise_seed(chip, 8)
    assert samples_processed(chip) == 0 and equal(weights_of(chip), start)
    assert equal(trace(chip, images), first)
    nabn.program_chip(chip, seed=3)
    assert samples_processed(chip) == 0 and equal(weights_of(chip), start) and equal(trace(chip, images), first)
    nabn.program_chip(chip, seed=4)
    assert not equal(trace(chip, images), first)
    assert equal(trace(chip_of(net, setting), images), first)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_copies_go_on_alike_and_apart(net, images, setting):
    chip = chip_of(net, setting)
    trace(chip, images)
    twin = copy.deepcopy(chip)
    expected = trace(chip, images)
    moved = weights_of(chip)
    assert equal(trace(twin, images), expected)
    trace(twin, images, (40,))
    assert equal(weights_of(chip), moved)
    nabn.drift_chip(twin, 50.0)  # a copy that has moved is not taken for one that was trained
    third = copy.deepcopy(twin)
    nabn.set_read_noise_seed(third, 0)
    nabn.drift_chip(copy.deepcopy(third), 60.0)
    assert samples_processed(chip) == 42 and samples_processed(third) == 0


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_drifting_goes_on_from_the_same_count(net, images, setting):
    chip, other = chip_of(net, setting), chip_of(net, setting)
    trace(chip, images)
    nabn.drift_chip(chip, 3600.0)
    assert samples_processed(chip) == 21
    nabn.drift_chip(other, 3600.0)
    trace(other, images)
    assert equal(trace(chip, images), trace(other, images))


def test_only_evaluation_moves_it_and_training_is_not_lost(net, images):
    chip = chip_of(net)
    chip(images(5))
    chip.train()
    chip(images(5))
    assert samples_processed(chip) == 5
    parameter = next(p for name, p in chip.named_parameters() if name.endswith("tile.weight"))
    with torch.no_grad():
        parameter.add_(1.0)
    chip.eval()
    with pytest.raises(nabn.NabnError, match="was trained after it was programmed"):
        nabn.drift_chip(chip, 10.0)
    trained = parameter.detach().clone()
    nabn.program_chip(chip, seed=0)
    assert (parameter - trained).abs().mean() < 0.5


def test_gradients_of_earlier_passes_survive_later_ones(net, images):
    chip = chip_of(net)
    x = images(4).requires_grad_()
    first = chip(x)
    expected = torch.autograd.grad(first.sum(), x, retain_graph=True)[0]
    chip(images(30))
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], expected)


def test_a_chip_without_moving_noise_gets_no_hook(net, images):
    chip = chip_of(net, "gaussian:sigma=0.1")
    chip(images(4))
    assert not chip._forward_pre_hooks and samples_processed(chip) == 0
    assert pickle.loads(pickle.dumps(chip_of(net)))._forward_pre_hooks


def test_aihwkits_own_layers_move_too():
    digital = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    analog = nabn.program_chip(convert_to_analog(digital, parse_preset(RAMP)).eval(), seed=0)
    x = torch.ones(10, 6)
    outputs = [analog(x) for _ in range(4)]
    assert not torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[2], outputs[3])


def test_samples_are_counted_in_what_models_take():
    x = torch.zeros(3, 2, 5, 4)
    assert count_samples([x]) == 3 and count_samples([{"inputs": x, "mode": "predict"}]) == 3
    assert count_samples([[x[0], x[1]], None]) == 2 and count_samples([(x, [1])]) == 3
    assert count_samples([]) == 1 and count_samples(["text"]) == 1 and count_samples([torch.tensor(3.0)]) == 1


def test_calibration_is_undone_while_the_noise_goes_on(net, images, batches):
    chip = chip_of(net)
    report = nabn.calibrate(chip, batches, method="paired", reference=net)
    assert samples_processed(chip) == 10
    report.undo()
    nabn.set_read_noise_seed(chip, 3)
    assert equal(trace(chip, images), trace(chip_of(net), images))


def test_methods_are_compared_from_the_same_start(net, images):
    seen: dict[str, list[float]] = {}

    def eval_fn(model: nn.Module) -> dict[str, float]:
        counts = []
        for index in range(3):
            counts.append(samples_processed(model))
            model(images(8, index))
        seen.setdefault("counts", []).append(counts)
        return {"metric": float(sum(w.sum() for w in weights_of(model))) if named_analog_layers(model) else 0.0}

    scenario = nabn.Scenario(name="ramp", rpu_config=parse_preset(RAMP))
    result = nabn.evaluate(
        net, scenarios=[scenario], methods=["paired", "online"], chips=2, eval_fn=eval_fn,
        calibration_batches=[images(6)], progress=False,
    )  # fmt: skip
    assert seen["counts"][1:] == [[0, 8, 16]] * 6
    by_chip = [[r.metrics["metric"] for r in result.records if r.chip_seed == seed] for seed in (0, 1)]
    assert all(len(set(values)) == 1 for values in by_chip) and by_chip[0] != by_chip[1]


def test_online_follows_a_ramp_and_static_statistics_do_not(images, settle):
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3),
                               nn.BatchNorm2d(8)))  # fmt: skip
    setting = "variational:sigma=0.5,schedule=ramp,start=0.0,period_samples=600"
    shift: dict[str, list[float]] = {}
    for method in ("population", "online"):
        chip = chip_of(net, setting)
        nabn.calibrate(chip, [images(40, seed) for seed in range(2)], method=method)
        nabn.set_read_noise_seed(chip, 3)
        shift[method] = []
        for index in range(20):
            with torch.no_grad():
                out = chip(images(40, 50 + index)).transpose(0, 1).flatten(1)
            # What a BatchNorm with the right statistics gives: its own bias and weight.
            mean, std = out.mean(1) - chip[4].bias.detach(), out.std(1) / chip[4].weight.detach().abs()
            shift[method].append(float(mean.abs().mean() + (std - 1).abs().mean()))
    # At the start both fit; at the end of the ramp only one of them does.
    assert shift["population"][0] < 0.15
    assert max(shift["online"]) < 0.5 and shift["online"][-1] < 0.2
    assert shift["population"][-1] > 5 * shift["online"][-1]
