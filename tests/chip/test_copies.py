"""Deep copies of a chip share what nobody writes into, and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.chip.shared import SharedTensor, share
from aihwkit_nabn.nn import named_analog_layers
from aihwkit_nabn.simulator import NoiseAwareRPUConfig
from tests.chips import tiled
from tests.tensors import equal, tensors_of

SHARED = ("reference_combined_weights", "programmed_weights")


def tiles(model):
    return [tile for layer in named_analog_layers(model).values() for tile in layer.analog_tiles()]


def everything(model):
    """Return all tensors of the model, those of the tiles' own attributes included."""
    found = tensors_of(model)
    for index, tile in enumerate(tiles(model)):
        for name in (*SHARED, "alpha", "drift_baseline"):
            value = getattr(tile, name)
            if value is not None:
                found[f"{index}.{name}"] = value.detach().clone()
        found[f"{index}.weights"] = tile.tile.get_weights().clone()
        for state in tile.drift_noise_parameters:
            values = state.items() if isinstance(state, dict) else [("nu", state)]
            found |= {f"{index}.{name}": value.clone() for name, value in values if value is not None}
    return found


@pytest.fixture(params=["pcm", "gaussian", "aihwkit"])
def programmed(request, net):
    if request.param == "aihwkit":
        config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel())
        model = convert_to_analog(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(140, 3)), config).eval()
    else:
        model = nabn.convert_to_noise_aware(net, tiled(request.param))
    return nabn.program_chip(model, seed=1, t_inference="1h")


def train(model, images):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(4)).square().mean().backward()
    optimizer.step()
    model.eval()


def calibrate(model, images):
    nabn.calibrate(model, [images(8)], "population")


def set_by_hand(model, images):
    for tile in tiles(model):
        tile.set_weights(torch.zeros(tile.out_size, tile.in_size))
        tile.rpu_config.noise_model = PCMLikeNoiseModel()
        tile.rpu_config.forward.out_noise = 9.0


CHANGES = {
    "program": lambda model, images: nabn.program_chip(model, 7, "1y"),
    "drift": lambda model, images: nabn.drift_chip(model, "1y"),
    "program by aihwkit": lambda model, images: (model.program_analog_weights(), model.drift_analog_weights(1e8)),
    "train": train,
    "train and program": lambda model, images: (train(model, images), nabn.program_chip(model, 7, "1y")),
    "calibrate": calibrate,
    "set by hand": set_by_hand,
}


@pytest.mark.parametrize("which", ["original", "copy"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_happens_to_one_leaves_the_other(programmed, images, change, which):
    if change == "calibrate" and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in programmed.modules()):
        pytest.skip("no BatchNorm")
    twin = copy.deepcopy(programmed)
    before = everything(programmed)
    assert equal(everything(twin), before)
    if change.endswith("aihwkit") and not hasattr(twin, "program_analog_weights"):
        pytest.skip("the root is not aihwkit's")
    changed, kept = (programmed, twin) if which == "original" else (twin, programmed)
    configs = [str(tile.rpu_config) for tile in tiles(kept)]
    CHANGES[change](changed, images)
    assert not equal(everything(changed), before) or (change == "drift" and not any_drifts(changed))
    assert equal(everything(kept), before)
    assert [str(tile.rpu_config) for tile in tiles(kept)] == configs
    # The one left alone still drifts and programs as it would have.
    fresh = copy.deepcopy(kept)
    for model in (kept, fresh):
        nabn.drift_chip(model, "1d")
    assert equal(everything(kept), everything(fresh))
    nabn.program_chip(kept, seed=1, t_inference="1h")
    assert equal(everything(kept), before)


def any_drifts(model):
    return any(getattr(tile.rpu_config.noise_model, "drifts", True) for tile in tiles(model))


def test_a_copy_shares_the_memory_of_the_programming(programmed):
    twin = copy.deepcopy(copy.deepcopy(programmed))
    for ours, theirs in zip(tiles(programmed), tiles(twin), strict=True):
        for name in SHARED:
            assert getattr(ours, name).data_ptr() == getattr(theirs, name).data_ptr()
        assert ours.tile.weight.data_ptr() != theirs.tile.weight.data_ptr()
        assert ours.rpu_config is not theirs.rpu_config
        assert ours.rpu_config.noise_model is not theirs.rpu_config.noise_model


def test_aihwkits_own_drift_before_a_copy_is_not_taken_for_training(images):
    model = convert_to_analog(nn.Sequential(nn.Linear(5, 4)), nabn.presets.PCMPreset()).eval()
    expected = everything(nabn.program_chip(model, seed=1))
    model.drift_analog_weights(1e6)
    assert equal(everything(nabn.program_chip(copy.deepcopy(model), seed=1)), expected)


def test_shared_tensors_are_tensors_like_others():
    plain = torch.arange(6.0).view(2, 3)
    shared = share([{"a": plain}, None, 3])[0]["a"]
    assert type(shared) is SharedTensor and shared.data_ptr() == plain.data_ptr()
    assert copy.deepcopy([shared])[0] is shared
    for result in (shared + 1, shared.clone(), shared.T @ shared, shared[0], shared.detach()):
        assert type(result) is torch.Tensor
    again = pickle.loads(pickle.dumps(shared))
    assert type(again) is torch.Tensor and torch.equal(again, plain)


def test_configurations_are_copied_deep():
    config = nabn.presets.PCMPreset()
    config.own = [config.forward, {"x": [1]}]
    twin, forward = copy.deepcopy((config, config.forward))
    assert type(twin) is type(config) and str(twin) == str(config) and isinstance(twin, NoiseAwareRPUConfig)
    assert twin.forward is forward and twin.own[0] is forward and forward is not config.forward
    for name, value in vars(config).items():
        if value is not None and not isinstance(value, (bool, int, float, str, type)):
            assert getattr(twin, name) is not value, name
    twin.pre_post.input_range.enable = True
    twin.own[1]["x"].append(2)
    assert not config.pre_post.input_range.enable and config.own[1] == {"x": [1]}
