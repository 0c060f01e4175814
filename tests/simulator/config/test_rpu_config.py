"""The base configuration on aihwkit's own tiles."""

from __future__ import annotations

import copy
import pickle

import torch
from aihwkit.nn import AnalogLinear
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile

from aihwkit_nabn.simulator import NoiseAwareRPUConfig, build_preset


def test_defaults_are_noise_free_until_programmed():
    config = NoiseAwareRPUConfig()
    assert config.forward.is_perfect and config.drift_compensation is None
    assert (config.mapping.max_input_size, config.mapping.max_output_size) == (512, 512)
    assert config.mapping.weight_scaling_omega == 0.0
    digital = torch.nn.Linear(20, 7)
    analog = AnalogLinear.from_digital(digital, config).eval()
    image = torch.rand(3, 20)
    assert torch.allclose(analog(image), digital(image), atol=1e-6)


def test_instances_share_nothing():
    first, second = NoiseAwareRPUConfig(), NoiseAwareRPUConfig()
    for name in ("forward", "mapping", "noise_model"):
        assert getattr(first, name) is not getattr(second, name)
    first.mapping.max_input_size = 3
    assert second.mapping.max_input_size == 512


def test_copies_equal_the_original_and_print_alike():
    config = NoiseAwareRPUConfig()
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and str(twin) == str(config)
    assert "GaussianWeightNoise(sigma=0.06, relative_to='max')" in str(config)


def test_aihwkit_takes_it_for_its_torch_tile():
    config = NoiseAwareRPUConfig()
    assert config.tile_class is TorchInferenceTile
    assert config.compatible_with("TorchInferenceTile") and not config.compatible_with("AnalogTile")


def test_all_zero_rows_work_under_columnwise_scaling():
    digital = torch.nn.Linear(20, 7)
    with torch.no_grad():
        digital.weight[2] = 0.0
    for name in ("pcm", "reram_cmo"):
        analog = AnalogLinear.from_digital(digital, build_preset(name)).eval()
        image = torch.rand(3, 20)
        assert torch.allclose(analog(image), digital(image), atol=1e-5)
        analog.drift_analog_weights(60.0)
        assert torch.isfinite(analog(image)).all()


def test_state_dicts_of_programmed_models_load_with_their_config():
    model = convert_to_analog(torch.nn.Sequential(torch.nn.Linear(6, 4)), build_preset("pcm")).eval()
    model.eval()
    model.program_analog_weights()
    twin = convert_to_analog(torch.nn.Sequential(torch.nn.Linear(6, 4)), build_preset("pcm")).eval()
    twin.load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    for layer in (model, twin):
        layer.eval()
    image = torch.rand(2, 6)
    assert torch.allclose(model(image), twin(image), atol=1e-6)
