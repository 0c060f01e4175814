"""Static input ranges: histograms against sorting, the rule against trying, and the way through an evaluation."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from torch import Tensor, nn

from aihwkit_nabn import calibrate_input_ranges, convert_to_noise_aware, evaluate, program_chip
from aihwkit_nabn.calibration.input_ranges import AbsHistogram, least_error_range
from aihwkit_nabn.chip.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.chip.input_ranges import input_ranges, set_input_range
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.simulator import NoiseAwareRPUConfig
from aihwkit_nabn.simulator.mvm import tiles_of


def config(rows: int = 512, **forward: Any) -> NoiseAwareRPUConfig:
    settings: dict[str, Any] = {
        "inp_res": 254.0,
        "out_res": 254.0,
        "out_bound": 10.0,
        "out_noise": 0.0,
        "bound_management": BoundManagementType.NONE,
        "noise_management": NoiseManagementType.NONE,
    }
    made = NoiseAwareRPUConfig(forward=IOParameters(**{**settings, **forward}))
    made.mapping.max_input_size = rows
    made.mapping.weight_scaling_omega, made.mapping.weight_scaling_columnwise = 1.0, True
    made.pre_post.input_range.enable = True
    return made


def network(scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    ).eval()
    model[0].weight.data *= scale
    return model


@pytest.mark.parametrize("kind", ["mixed", "negative", "relu", "growing"])
def test_the_histogram_against_sorting(kind: str) -> None:
    torch.manual_seed(1)
    parts = [torch.randn(n) * (3.0 ** (i if kind == "growing" else 0)) for i, n in enumerate((5000, 1, 20000, 333))]
    parts = [{"negative": -part.abs() - 0.1, "relu": part.relu()}.get(kind, part) for part in parts]
    histogram = AbsHistogram()
    for part in (*parts, torch.empty(0)):
        histogram.add(part)
    everything = torch.cat(parts).abs()
    assert float(histogram.counts.sum()) + histogram.n_zeros == everything.numel()
    assert histogram.maximum == float(everything.max()) == histogram.quantile(1.0)
    for q in (0.1, 0.5, 0.9, 0.999):
        assert abs(histogram.quantile(q) - float(everything.double().quantile(q))) <= 2.5 * float(histogram.edges[0])
    with pytest.raises(CalibrationError, match="'here' is not finite"):
        AbsHistogram("here").add(torch.tensor([1.0, float("nan")]))


@pytest.mark.parametrize("out_noise", [0.0, 0.1])
def test_the_range_is_the_one_with_the_least_error(out_noise: float) -> None:
    """Against trying ranges on the layer itself; inputs with a long tail, so that the maximum is a bad choice."""
    torch.manual_seed(2)
    layer: Any = convert_to_noise_aware(nn.Linear(256, 64, bias=False), config(out_noise=out_noise, inp_res=30.0))
    x = torch.randn(4000, 256) * torch.randn(4000, 256).exp()
    histogram = AbsHistogram()
    histogram.add(x)
    chosen = least_error_range(histogram, layer)
    exact = x @ layer.weight.T

    def error(value: float) -> float:
        set_input_range(layer, value)
        with torch.no_grad():
            return float((layer(x) - exact).pow(2).mean())

    tried = {value: error(value) for value in torch.linspace(0.5, histogram.maximum, 60).tolist()}
    assert chosen < 0.5 * histogram.maximum
    assert error(chosen) <= 1.15 * min(tried.values()) < 0.5 * error(histogram.maximum)


@pytest.mark.parametrize("rows", [512, 20])
def test_every_layer_gets_its_range_independent_of_the_others(rows: int) -> None:
    model, images = network(scale=50.0), torch.rand(40, 3, 6, 6) - 2.0
    analog: Any = convert_to_noise_aware(model, config(rows))
    found = calibrate_input_ranges(analog, images.split(16), quantile=1.0)
    seen: dict[str, float] = {}
    for name in ("0", "3", "5"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, float(args[0].abs().max()))
        )
    with torch.no_grad():
        digital = model(images)
    assert found.keys() == seen.keys() and found == pytest.approx(seen, rel=1e-4) == input_ranges(analog)
    for name in found:
        tiles: Any = tiles_of(analog.get_submodule(name))
        assert all(tile.input_range.item() == pytest.approx(found[name]) for tile in tiles)
    with torch.no_grad():
        assert (analog(images) - digital).norm() < 0.2 * digital.norm()
    assert calibrate_input_ranges(analog, images.split(16), max_samples=8)["0"] <= 2.0
    assert not any(module.exact for module in analog.modules() if hasattr(module, "exact"))


def test_bad_input_leaves_the_ranges() -> None:
    analog = convert_to_noise_aware(network(), config())
    before = input_ranges(analog)
    images = torch.rand(4, 3, 6, 6)
    for batches, message in (([], "empty"), ([images, images * float("nan")], "NaN"), ([images[:, :2]], "failed on")):
        with pytest.raises(CalibrationError, match=message):
            calibrate_input_ranges(analog, batches)
    with pytest.raises(NabnError, match="quantile"):
        calibrate_input_ranges(analog, [images], quantile=0.0)
    assert input_ranges(analog) == before
    plain = config()
    plain.pre_post.input_range.enable = False
    assert calibrate_input_ranges(convert_to_noise_aware(network(), plain), [images]) == {}


def test_an_evaluation_sets_them_first_and_a_file_keeps_them() -> None:
    model, images = network(scale=50.0), torch.rand(64, 3, 6, 6)
    with torch.no_grad():
        wanted = model(images)

    def closeness(module: nn.Module) -> dict[str, float]:
        got: Tensor = module(images)
        return {"closeness": -float((got - wanted).norm() / wanted.norm())}

    scenario = Scenario(name="8 bit", rpu_config=config())
    scenario.rpu_config.noise_model.sigma = 0.0  # type: ignore[attr-defined]
    result = evaluate(
        model,
        scenarios=[scenario],
        methods=["none", "paired"],
        eval_fn=closeness,
        chips=1,
        calibration_batches=images[:32].split(16),
        progress=False,
    )
    assert min(record.metrics["closeness"] for record in result.records) > -0.1
    with pytest.raises(NabnError, match="2 times"):
        evaluate(
            model,
            scenarios=[scenario],
            methods=["paired"],
            eval_fn=closeness,
            chips=1,
            calibration_batches=iter(images[:32].split(16)),
            progress=False,
        )
    with pytest.warns(UserWarning, match="initial value"), pytest.warns(UserWarning, match="cut off; set the ranges"):
        evaluate(model, scenarios=[scenario], methods=["none"], eval_fn=closeness, chips=1, progress=False)
    one, other = (convert_to_noise_aware(model, config()) for _ in range(2))
    calibrate_input_ranges(one, [images])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program_chip(one, seed=1)
    with pytest.warns(UserWarning, match="layer '0' is the initial 3"):
        program_chip(other, seed=1)
    load_calibration_tensors(other, calibration_tensors(one))
    assert input_ranges(one) == pytest.approx(input_ranges(other)) and input_ranges(one)["3"] != 3.0
