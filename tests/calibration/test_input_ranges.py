"""Static input ranges: histograms against sorting, the rule against trying, and the way through an evaluation."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aihwkit_nabn import calibrate_input_ranges, convert_to_noise_aware, evaluate, program_chip
from aihwkit_nabn.calibration.histogram import AbsHistogram, LogHistogram
from aihwkit_nabn.calibration.range_rule import least_error_range
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.evaluation import Scenario
from aihwkit_nabn.nn.calibration_tensors import calibration_tensors, load_calibration_tensors
from aihwkit_nabn.nn.input_ranges import input_ranges, output_bounds, set_input_range, set_output_bounds
from aihwkit_nabn.simulator import NoiseAwareRPUConfig, parse_preset
from aihwkit_nabn.simulator.product.tiles import tiles_of
from tests.chips import with_converters
from tests.networks import classifier


def config(rows: int = 512, **forward: Any) -> NoiseAwareRPUConfig:
    made: NoiseAwareRPUConfig = with_converters(NoiseAwareRPUConfig, (rows, 512), 3.0, **forward)
    return made


def network(scale: float = 1.0) -> nn.Sequential:
    model = classifier(n=8, padding=1, more=lambda: [nn.Conv2d(8, 6, 3)])
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
    with pytest.warns(UserWarning, match="initial value"), pytest.warns(UserWarning, match="clipped; set the ranges"):
        evaluate(model, scenarios=[scenario], methods=["none"], eval_fn=closeness, chips=1, progress=False)
    one, other = (convert_to_noise_aware(model, config()) for _ in range(2))
    calibrate_input_ranges(one, [images])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program_chip(one, seed=1)
    with pytest.warns(UserWarning, match="layer '0' is still the initial 3"):
        program_chip(other, seed=1)
    load_calibration_tensors(other, calibration_tensors(one))
    assert input_ranges(one) == pytest.approx(input_ranges(other)) and input_ranges(one)["3"] != 3.0


def test_log_histograms_against_the_values_themselves() -> None:
    torch.manual_seed(4)
    values = torch.randn(3, 4000) * torch.tensor([[0.01], [1.0], [300.0]])
    values[1, :100] = 0.0
    histogram = LogHistogram("here", 2)
    histogram.add(values[:, :1500], torch.tensor([0, 1, 1]))
    histogram.add(values[:, 1500:].reshape(3, 50, 50), torch.tensor([0, 1, 1]))
    kinds = [values[0], values[1:].flatten()]
    for kind, own in enumerate(kinds):
        assert int(histogram.counts[kind].sum()) == own.numel()
        for cut in (0.02, 0.7, 250.0, 1e4):
            index = int(torch.searchsorted(histogram.edges, cut))
            exact = (own.abs().double() - histogram.edges[index]).clamp(min=0).square().mean()
            scale = own.double().square().mean()
            assert abs(histogram.clipped()[kind, index] - exact) < 0.05 * exact + 1e-5 * scale
    for bad in (float("nan"), float("inf")):
        with pytest.raises(CalibrationError, match="output of layer 'here' is not finite"):
            histogram.add(torch.tensor([[1.0, bad]]), torch.tensor([0]))


@pytest.mark.parametrize(
    "module", [nn.Linear(60, 8, bias=False), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 12, 2, groups=4)]
)
@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize("out_noise", [0.0, 0.004])
def test_ranges_of_the_adc_are_those_with_the_least_error(module: Any, copies: int, out_noise: float) -> None:
    """Against scaling every range up and down on the layer itself; outputs of very different sizes, with long tails."""
    torch.manual_seed(3)
    module.reset_parameters()
    if isinstance(module, nn.Linear):
        module.weight.data[4:, 6:] = 0.0  # the second tile's outputs are small
    made = config(out_noise=out_noise, out_res=30.0)
    made.output_range, made.replicate_rows, made.mapping.max_output_size = True, copies, 5
    analog: Any = convert_to_noise_aware(nn.Sequential(module), made)
    x = torch.randn(500, 60) * torch.randn(500, 1).exp()
    if not isinstance(module, nn.Linear):
        x = torch.randn(300, 8, 7, 7) * torch.randn(300, 1, 1, 1).exp() * torch.logspace(-0.8, 0, 8).view(-1, 1, 1)
    ranges = calibrate_input_ranges(analog, [x[:90], x[90:]])
    layer, chosen = analog[0], output_bounds(analog)["0"]
    exact = layer.to_digital(layer)(x).detach()
    # the outputs of a group on a tile share a range, of all on a tile where there are no groups
    reads = list(zip(_tile_of(layer).tolist(), _group_of(layer).tolist(), strict=True))
    for read in reads:
        assert len(chosen[torch.tensor([other == read for other in reads])].unique()) == 1
    assert len(chosen.unique()) > 1

    def error(bounds: Tensor) -> Tensor:
        set_output_bounds(layer, bounds)
        with torch.no_grad():
            squared = (layer(x) - exact).square().transpose(0, 1).flatten(1).mean(1)
        return squared / exact.square().transpose(0, 1).flatten(1).mean(1)

    best = error(chosen)
    for factor in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
        # of each read, not of each output, and with noise of the estimate
        assert float(error(factor * chosen).mean()) > 0.97 * float(best.mean())
    assert float(error(8.0 * chosen).mean()) > 1.5 * float(best.mean())
    assert ranges["0"] > 0


def _tile_of(layer: Any) -> Tensor:
    return torch.cat([torch.full((tile.out_size,), index) for index, tile in enumerate(tiles_of(layer))])


def _group_of(layer: Any) -> Tensor:
    return torch.arange(layer.analog_module.out_size) // (layer.analog_module.out_size // layer.linear_map.groups)


def test_the_input_range_keeps_copied_columns_inside_a_fixed_adc() -> None:
    torch.manual_seed(6)
    layer, x = nn.Conv2d(16, 16, 3, groups=16, bias=False), torch.rand(50, 16, 8, 8)
    chosen = {}
    for copies in (1, 56):
        made = config()
        made.replicate_rows = copies
        analog: Any = convert_to_noise_aware(nn.Sequential(layer), made)
        chosen[copies] = calibrate_input_ranges(analog, [x])["0"]
        with torch.no_grad():
            assert (analog(x) - layer(x)).norm() < 0.2 * layer(x).norm()
    assert chosen[56] > 2 * chosen[1]  # 56 times the signal, into the same range


def test_evaluate_sets_the_ranges_of_the_adc_from_the_calibration_images() -> None:
    model, images = network(), [torch.rand(20, 3, 6, 6)]
    seen = []

    def measure(analog: nn.Module) -> dict[str, float]:
        seen.append(output_bounds(analog))
        return {"score": 1.0}

    preset = parse_preset("crossbar:output_range=true,replicate_rows=true")
    evaluate(
        model=model,
        eval_fn=measure,
        scenarios=[Scenario(name="own", rpu_config=preset)],
        methods=["none"],
        chips=2,
        calibration_batches=images,
    )
    bounds = [found for found in seen if found]
    assert len(bounds) >= 2 and all(float((b - 10.0).abs().min()) > 1e-3 for found in bounds for b in found.values())


def test_aihwkits_own_layers_say_that_their_adcs_keep_the_settings_range() -> None:
    from aihwkit.nn.conversion import convert_to_analog

    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)).eval()
    analog = convert_to_analog(model, parse_preset("crossbar:output_range=true")).eval()
    program_chip(analog, seed=1)
    before = output_bounds(analog)
    with pytest.warns(UserWarning, match=r"the ADCs of 2 layers \(0, 3\) keep the range of the settings"):
        assert set(calibrate_input_ranges(analog, [torch.randn(4, 3, 6, 6)])) == {"0", "3"}
    assert before and all(torch.equal(bound, before[name]) for name, bound in output_bounds(analog).items())
