from __future__ import annotations

import pytest
import torch
from aihwkit.nn import AnalogConv2d, AnalogLinear
from aihwkit.nn.conversion import _DEFAULT_CONVERSION_MAP, convert_to_analog, convert_to_digital
from aihwkit.nn.modules.base import AnalogLayerBase
from aihwkit.optim import AnalogSGD
from aihwkit.simulator import configs
from aihwkit.simulator import presets as aihwkit_presets
from aihwkit.simulator.parameters.base import RPUConfigBase
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.nn import NoiseAwareBatchNorm, NoiseAwareBatchNorm2d, NoiseAwareConv2d, NoiseAwareLinear
from aihwkit_nabn.nn.layers import NoiseAwareLayer


@pytest.fixture
def plain():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten()
    return nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(60, 2)}).eval()


@pytest.fixture
def registered():
    before = dict(_DEFAULT_CONVERSION_MAP)
    nabn.register()
    yield
    nabn.unregister()
    assert before == _DEFAULT_CONVERSION_MAP


def run(model, x):
    return model["head"](model["body"](x))


@pytest.mark.usefixtures("registered")
def test_aihwkits_conversion_gives_our_layers_and_back(plain, images, relative):
    nabn.register()  # twice is harmless
    analog = convert_to_analog(plain, nabn.presets.GaussianWeightNoisePreset(sigma=0.1)).eval()
    body = analog["body"]
    assert type(body[0]) is NoiseAwareConv2d and type(body[1]) is NoiseAwareBatchNorm2d
    assert type(body[3]) is NoiseAwareConv2d and type(analog["head"]) is NoiseAwareLinear
    x = images(3)
    expected = run(plain, x)
    assert relative(run(analog, x), expected) < 1e-5
    nabn.program_chip(analog, seed=1)
    nabn.calibrate(analog, [x], reference=plain, forward_fn=run)
    noisy = run(analog, x)
    digital = convert_to_digital(analog)
    assert not any(isinstance(m, (NoiseAwareConv2d, NoiseAwareBatchNorm2d)) for m in digital.modules())
    assert relative(run(digital, x), noisy) < 1e-5


@pytest.mark.usefixtures("registered")
def test_a_single_layer_and_a_sync_batchnorm():
    layer = convert_to_analog(nn.Linear(4, 2), nabn.presets.GaussianWeightNoisePreset())
    assert type(layer) is NoiseAwareLinear
    model = convert_to_analog(
        nn.Sequential(nn.Linear(4, 2), nn.SyncBatchNorm(2)), nabn.presets.GaussianWeightNoisePreset()
    )
    assert isinstance(model[1], nabn.nn.NoiseAwareBatchNorm)


def test_unregistered_aihwkit_is_as_it_was(plain):
    nabn.register()
    nabn.unregister()
    nabn.unregister()
    analog = convert_to_analog(plain["head"], nabn.presets.GaussianWeightNoisePreset())
    assert type(analog) is AnalogLinear
    assert nn.BatchNorm2d not in _DEFAULT_CONVERSION_MAP
    assert _DEFAULT_CONVERSION_MAP[nn.Conv2d] is AnalogConv2d


CONFIGS = {
    name: found
    for module in (configs, aihwkit_presets)
    for name, found in vars(module).items()
    if isinstance(found, type) and issubclass(found, RPUConfigBase)
}
LAYERS = {
    "Linear": (lambda: nn.Linear(4, 4), (5, 4)),
    "Conv1d": (lambda: nn.Conv1d(2, 3, 2), (5, 2, 6)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, 2), (5, 2, 6, 6)),
    "grouped": (lambda: nn.Conv2d(2, 4, 2, groups=2), (5, 2, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (5, 2, 4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 2), (5, 2, 6)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 2), (5, 2, 6, 6)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (5, 2, 4, 4, 4)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(2), (5, 2, 6)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), (5, 2, 6, 6)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), (5, 2, 4, 4, 4)),
    "no statistics": (lambda: nn.BatchNorm2d(2, track_running_stats=False), (5, 2, 6, 6)),
    "half": (lambda: nn.Linear(4, 4).bfloat16(), (5, 4)),
}
SERVED = {config for config in CONFIGS.values() if getattr(config, "tile_class", None) is TorchInferenceTile}
SERVED -= {configs.TorchInferenceRPUConfigIRDropT}


def trained(config, layer, **options):
    """Convert, train one step, predict: the layer, its tiles, and whether a weight moved; or what went wrong."""
    torch.manual_seed(0)
    make, shape = LAYERS[layer]
    module, x = make(), torch.randn(shape)
    x = x.to(next(module.parameters()).dtype)
    try:
        model = convert_to_analog(nn.Sequential(module), config(), **options).train()
        tiles = list(model.analog_tiles())
        before = [weights_of(tile) for tile in tiles] + [p.detach().clone() for p in model[0].parameters()]
        optimizer = AnalogSGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
        after = [weights_of(tile) for tile in tiles] + [p.detach().clone() for p in model[0].parameters()]
        moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert model.eval()(x).isfinite().all()
    except Exception as error:  # what aihwkit cannot do by itself either
        return None, type(error)
    return model[0], (sorted({(type(tile), type(tile.tile)) for tile in tiles}, key=str), moved)


def weights_of(tile):
    return tile.tile.get_weights().detach().clone()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_works_without_works_with_it(config, layer):
    plain, expected = trained(config, layer)
    nabn.register()
    try:
        ours, outcome = trained(config, layer)
    finally:
        nabn.unregister()
    if plain is None:
        assert ours is not None or outcome == expected
    elif isinstance(ours, NoiseAwareLayer) and not isinstance(plain, AnalogLayerBase):
        assert config in SERVED and outcome[1]  # digital without us
    else:
        assert outcome == expected
    noise_aware = isinstance(ours, (NoiseAwareLayer, NoiseAwareBatchNorm))
    if config in SERVED and layer not in ("half", "no statistics"):
        assert noise_aware
    elif not hasattr(config(), "noise_model"):
        assert not noise_aware and type(ours) is type(plain)


@pytest.mark.usefixtures("registered")
def test_one_step_gives_the_weights_that_aihwkits_layer_gives(relative):
    def config():
        made = configs.TorchInferenceRPUConfig()
        made.forward.is_perfect = True
        return made

    for layer in ("Linear", "Conv2d"):
        ours, _ = trained(config, layer)
        nabn.unregister()
        plain, _ = trained(config, layer)
        nabn.register()
        for tile, other in zip(ours.analog_tiles(), plain.analog_tiles(), strict=True):
            assert relative(weights_of(tile), weights_of(other)) < 1e-5


@pytest.mark.usefixtures("registered")
def test_a_tile_module_that_the_caller_names_is_taken():
    layer = convert_to_analog(nn.Linear(4, 2), configs.TorchInferenceRPUConfig(), tile_module_class=TorchInferenceTile)
    assert type(layer) is AnalogLinear and type(layer.analog_module) is TorchInferenceTile


@pytest.mark.usefixtures("registered")
def test_layers_with_configurations_of_their_own_are_each_judged_by_it():
    def specific(name, _, config):
        return configs.TorchInferenceRPUConfig() if name == "1" else config

    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    analog = convert_to_analog(model, configs.FloatingPointRPUConfig(), specific_rpu_config_fun=specific)
    assert [type(layer) for layer in analog] == [AnalogLinear, NoiseAwareLinear, nn.BatchNorm1d]
