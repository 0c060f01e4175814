"""The methods that compare with the reference, against the slow obvious answer."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from aihwkit.inference import PCMLikeNoiseModel
from aihwkit.nn import AnalogConv2d
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CALIBRATION_METHODS, Moments
from aihwkit_nabn.calibration.pairs import ANALOG, DIGITAL, JointMoments, Pair
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn import named_analog_layers

Paired = CALIBRATION_METHODS.get("paired")


def rows(output, channel_dim):
    return output.movedim(channel_dim, -1).reshape(-1, output.shape[channel_dim])


def outputs_of(modules, model, batch):
    """Return every module's outputs in one forward pass, in the order of the calls."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.append((name, out.detach())))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


def make_pair(digital, analog, channel_dim):
    """A pair from concatenated outputs, the correlation over all positions with numpy."""
    d, a = (torch.cat([rows(x, channel_dim) for x in outputs]) for outputs in (digital, analog))
    joint = JointMoments.empty(d.shape[1], d.device)
    if len(a) == len(d) and len(a):
        joint.add(a.t(), d.t())
    return Pair(Moments.of(d, -1), Moments.of(a, -1), joint)


def by_hand(chip, net, batches, rule):
    """Scale and offset by layer: all batches through one layer, its correction put in for good, then the next one."""
    layers = named_analog_layers(chip)
    dims = {name: layer.alignment.channel_dim for name, layer in layers.items()}
    twins = {name: net.get_submodule(name) for name in layers}
    reference = [call for batch in batches for call in outputs_of(twins, net, batch)]
    found, hooks = {}, []
    for name, layer in layers.items():
        seen = [call for batch in batches for call in outputs_of({name: layer}, chip, batch)]
        if not seen:
            continue
        found[name] = rule(make_pair([y for key, y in reference if key == name], [y for _, y in seen], dims[name]))

        def align(module, args, output, vectors=found[name], dim=dims[name]):
            scale, offset = (vector.to(output).view((-1,) + (1,) * (-dim - 1)) for vector in vectors)
            return output * scale + offset

        hooks.append(layer.register_forward_hook(align))
    for hook in hooks:
        hook.remove()
    return found


def compare(chip, expected, tolerance=2e-4):
    for name, layer in named_analog_layers(chip).items():
        assert layer.alignment.is_set == (name in expected)
        if name in expected:
            scale, offset = expected[name]
            torch.testing.assert_close(layer.alignment.scale.double(), scale, rtol=tolerance, atol=tolerance / 10)
            torch.testing.assert_close(layer.alignment.offset.double(), offset, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shrink", [0.0, 1.0])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_paired_is_alignment_layer_by_layer(chip, net, batches, n_batches, shrink):
    method = Paired(shrink=shrink)
    expected = by_hand(chip, net, batches[:n_batches], method.rule)
    nabn.calibrate(chip, batches[:n_batches], method, reference=net)
    compare(chip, expected)


def test_the_rule(chip):
    rng = np.random.default_rng(0)
    digital = rng.normal(2.0, 3.0, (50, 3))
    analog = digital * 0.5 - 1 + rng.normal(0, 0.4, (50, 3))
    pair = make_pair([torch.tensor(digital)], [torch.tensor(analog)], -1)
    correlation = [np.corrcoef(digital[:, c], analog[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(pair.correlation.numpy(), correlation, rtol=1e-10)
    plain = digital.std(0) / analog.std(0)
    for shrink in (0.0, 0.5, 1.0):
        scale, offset = Paired(shrink=shrink).rule(pair)
        np.testing.assert_allclose(scale.numpy(), plain * np.array(correlation) ** shrink, rtol=0.05)
        np.testing.assert_allclose(offset.numpy(), digital.mean(0) - scale.numpy() * analog.mean(0), rtol=1e-10)
    for flat in (analog, digital):
        flat[:, 1] = 0.7
        scale, offset = Paired(shrink=1.0).rule(make_pair([torch.tensor(digital)], [torch.tensor(analog)], -1))
        assert torch.isfinite(scale).all() and torch.isfinite(offset).all() and (scale >= 0).all()
    assert scale[1] == 1.0 and offset[1] == 0.0


def test_paired_brings_every_layers_moments_to_the_references(chip, net, images):
    batch = images(32, 5)
    layers = named_analog_layers(chip)
    reference = dict(outputs_of({name: net.get_submodule(name) for name in layers}, net, batch))
    before = dict(outputs_of(layers, chip, batch))
    report = nabn.calibrate(chip, [batch], "paired", reference=net, shrink=0.0)
    after = dict(outputs_of(layers, chip, batch))
    assert [layer.name for layer in report.layers] == list(layers)
    for shift in report.layers:
        dim = layers[shift.name].alignment.channel_dim
        target, got, raw = (rows(outputs[shift.name], dim).double() for outputs in (reference, after, before))
        spread = target.std(0, correction=0)
        assert (got.mean(0) - target.mean(0)).abs().max() < 1e-4 * spread.max()
        torch.testing.assert_close(got.std(0, correction=0), spread, rtol=0.05, atol=0)
        assert shift.n_values == len(target) and shift.kind == "analog layer"
        assert shift.mean_after < 1e-4 < shift.mean_before and shift.spread_after < shift.spread_before
        if shift.name == "stem.0":  # behind the first layer the chip's own inputs have been corrected already
            expected = ((raw.mean(0) - target.mean(0)) / spread).square().mean().sqrt()
            assert shift.mean_before == pytest.approx(float(expected), rel=1e-3)
    lines = str(report).splitlines()
    assert lines[0].startswith("paired: 32 samples in 1 batches") and len(lines) == 3 + len(layers)
    assert all(line.startswith(name) and " -> " in line for line, name in zip(lines[2:-1], layers, strict=True))
    assert lines[-1].startswith(f"verified on the example inputs: {len(layers)} layers give what the digital ones")


def test_paired_on_a_chip_without_noise_is_the_identity(net, batches, images, relative):
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.0))
    nabn.program_chip(chip, seed=0)
    for method in ("paired", "distill"):
        nabn.calibrate(chip, batches, method, reference=net)
        assert relative(chip(images(5, 30)), net(images(5, 30))) < 1e-5


@pytest.mark.parametrize("method", ["paired", "distill"])
def test_comes_closer_to_the_reference_on_new_images(method, net, images):
    errors = {"none": [], method: []}
    for seed in range(5):
        rpu_config = nabn.presets.GaussianWeightNoisePreset(sigma=0.1)
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, rpu_config), seed=seed)
        x = images(32, 70)
        errors["none"].append((chip(x) - net(x)).square().mean())
        nabn.calibrate(chip, [images(32, 80)], method, reference=net)
        errors[method].append((chip(x) - net(x)).square().mean())
    assert torch.stack(errors[method]).mean() < 0.7 * torch.stack(errors["none"]).mean()


class SharedHead(nn.Module):
    """A convolution that runs on every level, and one that eval mode leaves out."""

    def __init__(self):
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.auxiliary = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        if self.training:
            x = self.auxiliary(x)
        return sum(self.shared(level).mean((2, 3)) for level in (x, x[..., ::2], x[..., ::3, :]))


def test_a_layer_that_runs_on_several_inputs_has_one_alignment(images):
    torch.manual_seed(0)
    net = SharedHead().eval()
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.2))
    nabn.program_chip(chip, seed=0)
    batches = [images(3, 1), images(2, 2)]
    expected = by_hand(chip, net, batches, Paired(shrink=0.0).rule)
    report = nabn.calibrate(chip, batches, "paired", reference=net, shrink=0.0)
    assert [layer.name for layer in report.layers] == ["stem", "shared"]
    assert not chip.auxiliary.alignment.is_set
    compare(chip, expected)


def test_a_branch_without_inputs_is_let_be(images):
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            features = self.conv(x).mean((2, 3))
            return self.head(features[features[:, 0] > 1e6])

    net = Regions().eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset()), seed=0)
    nabn.calibrate(chip, [images(3)], reference=net)
    assert chip.conv.alignment.is_set and not chip.head.alignment.is_set


def test_models_of_aihwkits_own_conversion(images, relative, settle, bits, same):
    """No layer of ours in it: alignments are put behind aihwkit's own."""
    torch.manual_seed(0)
    net = settle(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(210, 4)))
    config = TorchInferenceRPUConfig(noise_model=PCMLikeNoiseModel(), forward=IOParameters(is_perfect=True))
    chip = convert_to_analog(nn.ModuleDict({"net": net}), config).eval()
    nabn.program_chip(chip, seed=0, t_inference="1d")
    assert isinstance(chip["net"][0], AnalogConv2d) and type(chip).__name__.startswith("AnalogWrapper")
    x, batches = images(16, 3), [images(16, 4), images(8, 5)]

    def run(model, batch):
        return model["net"](batch)

    uncalibrated = run(chip, x)
    keys = set(chip.state_dict())
    reference = nn.ModuleDict({"net": net})
    report = nabn.calibrate(chip, batches, reference=reference, forward_fn=run)
    calibrated = run(chip, x)
    assert relative(calibrated, net(x)) < relative(uncalibrated, net(x))
    with nabn.calibration_disabled(chip):
        assert torch.equal(run(chip, x), uncalibrated)
    twin = copy.deepcopy(chip)
    assert torch.equal(run(twin, x), calibrated)
    handle = nabn.fold_calibration(chip)
    assert relative(run(chip, x), calibrated) < 1e-5
    handle.undo()
    assert torch.equal(run(chip, x), calibrated)
    report.undo()
    assert torch.equal(run(chip, x), uncalibrated) and set(chip.state_dict()) == keys
    before = bits(chip)
    nabn.calibrate(chip, batches, "distill", reference=reference, forward_fn=run, steps=2).undo()
    with pytest.raises(CalibrationError, match="no BatchNorm with trained statistics.*use method='paired'"):
        nabn.calibrate(chip, batches, "population", forward_fn=run)
    assert same(bits(chip), before)


def other(net, **changes):
    twin = copy.deepcopy(net)
    for name, module in changes.items():
        setattr(twin, name, module)
    return twin


REFERENCES = {
    "missing": (lambda net: nn.Sequential(net), "reference has no layer 'stem.0', did you mean '0.stem.0'"),
    "renamed": (lambda net: nn.ModuleDict({"stem": net.stem}), "reference has no layer 'grouped'"),
    "shape": (
        lambda net: other(net, head=nn.Linear(6, 4)),
        r"reference layer 'head' has a \(4, 6\) weight matrix, .*\(5, 6\)",
    ),
    "weightless": (lambda net: other(net, head=nn.Identity()), "reference layer 'head' is a Identity without weights"),
    "analog": (
        lambda net: nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset()),
        "reference must be the digital model, but it has analog layers itself",
    ),
    "no module": (lambda net: "net", "pass reference=model"),
    "other wiring": (lambda net: other(net, row=Bypassed(net.row)), "ran on the chip but not in the reference"),
    "fails": (lambda net: other(net, norm=nn.BatchNorm2d(3).eval()), "the reference failed on calibration batch 0"),
}


class ReadsWeights(nn.Module):
    """As torchvision's Swin transformers: the network's own code takes the weights of `read` and does not call it."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        assert self.called.weight.dtype == x.dtype
        return F.linear(self.called(x), self.read.weight, self.read.bias)


def test_layers_whose_weights_are_read_are_told():
    net = ReadsWeights().eval()
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    nabn.program_chip(chip, seed=0)
    with pytest.warns(UserWarning, match=r"reads the weights of 1 analog layers \(read\) instead of calling them"):
        report = nabn.calibrate(chip, [torch.randn(8, 4)], reference=net)
    assert [layer.name for layer in report.layers] == ["called"]


class OnWhatIsFound(nn.Module):
    """As two-stage detectors: heads run on what another one finds, on nothing at all or not at all."""

    def __init__(self):
        super().__init__()
        self.score, self.head, self.mask = nn.Linear(4, 1), nn.Linear(4, 3), nn.Linear(4, 3)
        self.threshold, self.skips = -99.0, False

    def forward(self, x):
        found = x[self.score(x)[:, 0] > self.threshold]
        return self.head(found), self.mask(found) if len(found) or not self.skips else None


@pytest.mark.parametrize("blind", ["chip", "reference"])
@pytest.mark.parametrize("skips", [False, True])
def test_layers_behind_a_side_that_finds_nothing_are_told(blind, skips):
    torch.manual_seed(0)
    net = OnWhatIsFound().eval()
    net.skips = skips
    batches = [torch.randn(8, 4)]
    chip = nabn.convert_to_noise_aware(
        net, nabn.presets.GaussianWeightNoisePreset(sigma=0.01), example_inputs=batches[0]
    )
    nabn.program_chip(chip, seed=0)
    (chip if blind == "chip" else net).threshold = 99.0
    if blind == "reference" and skips:
        with pytest.raises(CalibrationError, match="'mask' ran on the chip but not in the reference; is it the same"):
            nabn.calibrate(chip, batches, "paired", reference=net)
        return
    with pytest.warns(UserWarning, match=r"2 analog layers \(head, mask\) had inputs in only one of chip"):
        report = nabn.calibrate(chip, batches, "paired", reference=net)
    assert [layer.name for layer in report.layers] == ["score"]


class Bypassed(nn.Conv1d):
    """Has the layer's weights, but a forward pass that its hooks see nothing of."""

    def __init__(self, conv):
        super().__init__(10, 6, 3, padding="same")
        self.load_state_dict(conv.state_dict())

    def __call__(self, x):
        return super().forward(x)


@pytest.mark.parametrize("method", ["paired", "distill"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_references_that_do_not_fit(kind, method, chip, net, batches, bits, same):
    make, message = REFERENCES[kind]
    reference = make(net)
    before = bits(chip)
    with pytest.raises(CalibrationError, match=message):
        nabn.calibrate(chip, batches, method, reference=reference)
    assert same(bits(chip), before)


def test_the_chip_is_no_reference_of_itself(chip, batches):
    with pytest.raises(CalibrationError, match="has analog layers itself"):
        nabn.calibrate(chip, batches, reference=chip)


def test_distill_never_ends_worse_on_the_samples_held_out(chip, net, images):
    """With an absurd step size tuning only destroys: what is kept is the start."""
    batches = [images(48, 1), images(48, 2)]
    x = images(8, 3)
    nabn.calibrate(chip, batches, "paired", reference=net)
    paired = chip(x)
    report = nabn.calibrate(chip, batches, "distill", reference=net, steps=4, lr=1e4)
    assert torch.equal(chip(x), paired)
    assert report.notes == ["tuning found nothing better, so it stayed at its start"]
    assert report.notes[0] in str(report)
    report = nabn.calibrate(chip, batches, "distill", reference=net, steps=60)
    assert not torch.equal(chip(x), paired) and not report.notes


@pytest.mark.slow
def test_distill_finds_its_step():
    """From a first step far too large, which once lost everything that tuning had to give on deep networks."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
            self.norm1, self.norm2 = nn.BatchNorm2d(12), nn.BatchNorm2d(12)

        def forward(self, x):
            return (x + self.norm2(self.two(self.norm1(self.one(x)).relu()))).relu()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *(Block() for _ in range(6)), nn.Flatten(), nn.Linear(768, 5))
    for _ in range(20):
        net(torch.randn(32, 3, 8, 8))
    net.eval()
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    nabn.program_chip(chip, seed=1)
    batches, x = [torch.randn(64, 3, 8, 8) for _ in range(2)], torch.randn(128, 3, 8, 8)

    def error(method, **options):
        report = nabn.calibrate(chip, batches, method, reference=net, **options)
        with torch.no_grad():
            return float((chip(x) - net(x)).square().mean()), report.notes

    start, _ = error("paired")
    for lr in (0.5, 0.02):
        found, notes = error("distill", lr=lr)
        assert found < 0.98 * start and not notes


def test_prediction_weight_is_refused_before_anything_runs_on_the_chip(chip, net, images, bits, same):
    def forward(model, batch):
        assert model is not chip
        return {"logits": model(batch)}

    chip.__dict__["verification"] = object()  # nothing to verify any more
    before = bits(chip)
    with pytest.raises(CalibrationError, match="prediction_weight needs a model that returns one tensor of logits"):
        nabn.calibrate(chip, [images(4)], "distill", reference=net, prediction_weight=1.0, forward_fn=forward)
    assert same(bits(chip), before)


def test_distill_needs_gradients_through_the_forward_pass(chip, net, images, bits, same):
    @torch.no_grad()
    def forward(model, batch):
        return model(batch)

    before = bits(chip)
    with pytest.raises(CalibrationError, match="runs without gradients"):
        nabn.calibrate(chip, [images(8)], "distill", reference=net, forward_fn=forward, steps=2)
    assert same(bits(chip), before)


def test_cross_moments_merge_as_numpys_over_everything():
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 1, (n, 2, 3)) for n in (7, 1, 12)]
    joint = JointMoments.empty(3, torch.device("cpu"))
    for part in parts:
        part[:, 1] = part[:, 1] * 0.5 + part[:, 0]
        joint.add(torch.tensor(part[:, 0].T), torch.tensor(part[:, 1].T))
        joint.add(torch.empty(3, 0), torch.empty(3, 0))
    a, d = np.concatenate(parts).transpose(1, 0, 2)
    expected = [np.corrcoef(a[:, c], d[:, c])[0, 1] for c in range(3)]
    np.testing.assert_allclose(joint.correlations()[ANALOG, DIGITAL].numpy(), expected, rtol=1e-10)
    nothing = JointMoments.empty(2, torch.device("cpu"))
    assert torch.equal(nothing.correlations(), torch.zeros(2, 2, 2).double())
    assert torch.equal(Pair(Moments.empty(2), Moments.empty(2), nothing).correlation, torch.ones(2).double())


def test_distill_can_match_predictions_too(chip, net, images):
    batches = [images(48, 1), images(48, 2)]
    nabn.calibrate(chip, batches, "distill", reference=net, steps=10)
    blocks_only = chip(images(8, 3))
    nabn.calibrate(chip, batches, "distill", reference=net, steps=10, prediction_weight=5.0)
    assert not torch.equal(chip(images(8, 3)), blocks_only)
    with pytest.raises(CalibrationError, match="prediction_weight needs a model that returns one tensor of logits"):
        nabn.calibrate(
            chip,
            batches,
            "distill",
            reference=net,
            prediction_weight=1.0,
            forward_fn=lambda model, batch: {"logits": model(batch)},
        )


def test_batches_that_cannot_be_regrouped_are_distilled_whole(chip, net, images):
    sizes = []

    def forward(model, batch):
        if model is chip:
            sizes.append(len(batch["image"]))
        return model(batch["image"])

    batches = [{"image": images(n, n)} for n in (3, 5, 2)]
    nabn.calibrate(chip, batches, "distill", reference=net, steps=4, batch_size=64, forward_fn=forward)
    assert set(sizes) == {3, 5, 2}


def test_the_grid_of_positions_for_the_correlation_is_fair(images):
    """On maps too large to keep, the correlation comes from a sample that is close to all of it."""
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3, padding=1).eval()
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.3))
    nabn.program_chip(chip, seed=0)
    batch = images(2, 1, (3, 150, 90))
    with torch.no_grad():
        pair = make_pair([net(batch)], [chip(batch)], -3)
    expected, _ = Paired(shrink=1.0).rule(pair)
    nabn.calibrate(chip, [batch], reference=net, shrink=1.0)
    standard_error = (1 - pair.correlation.square()) / 1000**0.5
    assert ((chip.alignment.scale - expected).abs() < 4 * standard_error + 1e-3).all()
