"""Any split into batches gives the same calibration, for every method that says so."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import exact, lockstep, pairs
from aihwkit_nabn.chip.variation import samples_processed, set_samples_processed
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.noise.variational import VariationalNoise
from tests.chips import chip_of
from tests.networks import ResidualBlock
from tests.properties.networks import SIZE, networks

EXACT = ["population", "prior", "paired", "common_mode", "low_rank"]
SPLITS = {"one": [24], "even": [8, 8, 8], "uneven": [1, 14, 0, 2, 7], "single": [1] * 24}


def calibrated(chip, net, batches, method, x, **options):
    if method not in ("population", "prior"):
        options["reference"] = net
    report = nabn.calibrate(chip, batches, method, **options)
    with torch.no_grad():
        return chip(x), report


@pytest.fixture(scope="module")
def deep():
    """Residual blocks, strided, with BatchNorm, and a linear head: what population was off by 11% on."""

    torch.manual_seed(0)
    blocks = [ResidualBlock(8, 2 if n in (2, 4) else 1) for n in range(6)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for _ in range(5):
        net(torch.randn(32, 3, 16, 16))
    net.eval()
    chip = nabn.convert_to_noise_aware(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.1))
    return net, nabn.program_chip(chip, seed=1)


@pytest.mark.parametrize("method", EXACT)
def test_any_split_gives_the_same(deep, method, relative):
    net, chip = deep
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    x = torch.randn(4, 3, 16, 16)
    expected, _ = calibrated(chip, net, [images], method, x)
    for sizes in SPLITS.values():
        got, report = calibrated(chip, net, list(images.split(sizes)), method, x)
        assert relative(got, expected) < 2e-5
        assert report.n_passes == 1 and report.n_samples == 24


@pytest.mark.parametrize("method", EXACT)
@given(net=networks(), seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=8, deadline=None)
def test_random_networks_and_random_splits(method, net, seed, data):
    assume(method not in ("population", "prior") or any(isinstance(m, nn.BatchNorm2d) for m in net.modules()))
    generator = torch.Generator().manual_seed(seed)
    chip = chip_of(net, "gaussian:sigma=0.1", seed)
    images, x = torch.randn(14, 3, SIZE, SIZE, generator=generator).split([11, 3])
    expected, whole = calibrated(chip, net, [images], method, x)
    cuts = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=4).map(sorted))
    got, _ = calibrated(chip, net, list(images.tensor_split(cuts)), method, x)
    scale = float(expected.abs().max())
    # Layers that are called twice settle to a thousandth of a standard deviation, not to the last digit.
    assert float((got - expected).abs().max()) < (1e-4 if whole.n_passes == 1 else 2e-2) * scale


@pytest.mark.parametrize("method", EXACT)
def test_passes_given_up_for_memory_give_the_same_bits(deep, method, monkeypatch):
    net, chip = deep
    batches = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    x = torch.randn(4, 3, 16, 16)
    expected, _ = calibrated(chip, net, batches, method, x)
    monkeypatch.setattr(lockstep, "HELD_BYTES", 150_000)
    got, report = calibrated(chip, net, batches, method, x)
    assert torch.equal(got, expected) and 1 < report.n_passes < 25
    assert f"{report.n_passes} passes over them," in str(report)
    monkeypatch.setattr(lockstep, "HELD_BYTES", 0)
    got, report = calibrated(chip, net, batches, method, x)
    n_gates = len(report.layers)
    assert torch.equal(got, expected) and report.n_passes == n_gates + 1


def test_read_noise_is_that_of_each_pass_alone(deep, monkeypatch):
    net, _ = deep
    chip = nabn.convert_to_noise_aware(net, nabn.presets.StandardCrossbarPreset())
    batches = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    nabn.calibrate_input_ranges(chip, batches)
    results = []
    for held in (2**30, 0):
        monkeypatch.setattr(lockstep, "HELD_BYTES", held)
        nabn.program_chip(chip, seed=2)
        results.append(calibrated(chip, net, batches, "common_mode", batches[0])[0])
    assert torch.equal(*results)


def test_noise_that_moves_is_what_each_batch_would_find_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    rpu_config = nabn.presets.GaussianWeightNoisePreset()
    rpu_config.noise_model = VariationalNoise(0.3, schedule="ramp", period_samples=8)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, rpu_config), seed=0)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    outputs, expected = [], []
    with torch.no_grad():
        for batch in batches:
            handle = chip[0].register_forward_hook(lambda module, args, output: outputs.append(output.double()))
            chip(batch)
            handle.remove()
            expected.append(net[0](batch).double())
        assert not torch.allclose(outputs[0].std(), outputs[2].std(), rtol=1e-3)
    chip_out, digital = (torch.cat(ys).movedim(1, 0).flatten(1) for ys in (outputs, expected))
    set_samples_processed(chip, 0)
    nabn.calibrate(chip, batches, "paired", reference=net, shrink=0.0)
    assert samples_processed(chip) == 12
    n = digital.shape[1]
    ratio = digital.var(1, correction=0) / chip_out.var(1, correction=0)
    scale = (ratio * n / (n + 2) + 2 / (n + 2)).sqrt()  # as `matching_scale` holds it back
    torch.testing.assert_close(chip[0].alignment.scale.double(), scale, rtol=1e-5, atol=0)
    offset = digital.mean(1) - scale * chip_out.mean(1)
    torch.testing.assert_close(chip[0].alignment.offset.double(), offset, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """A head that runs on every level of a pyramid: deeper layers are called before the earlier ones have ended."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Sequential(*(m for _ in range(4) for m in (nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())))
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        levels = [x, x[..., ::2, ::2] * 1.5, x[..., ::4, ::4] - 0.3]
        return torch.cat([self.out(self.head(level)).flatten(1) for level in levels], 1)


@pytest.mark.parametrize("method", ["paired", "common_mode"])
def test_shared_layers_settle_to_the_same(method, relative):
    torch.manual_seed(0)
    net = Shared().eval()
    chip = chip_of(net, "gaussian:sigma=0.1", 1)
    images, x = torch.randn(12, 3, 16, 16), torch.randn(3, 3, 16, 16)
    expected, whole = calibrated(chip, net, [images], method, x)
    got, report = calibrated(chip, net, list(images.split([5, 1, 6])), method, x)
    assert relative(got, expected) < 1e-4
    assert 1 < report.n_passes == whole.n_passes <= 6


def test_layers_in_front_of_shared_ones_are_measured_once(monkeypatch):
    """The others once per pass; with the same bits as when all are."""
    net, x = Shared().eval(), torch.randn(12, 3, 16, 16)
    measured, outputs = {}, []
    empty = pairs._PairGate.empty

    def note(gate, call):
        measured[gate.name] = measured.get(gate.name, 0) + 1
        return empty(gate, call)

    monkeypatch.setattr(pairs._PairGate, "empty", note)
    for behind in (exact._behind, lambda shared, ways: {gate for way in ways for gate in way}):
        monkeypatch.setattr(exact, "_behind", behind)
        measured.clear()
        chip = chip_of(net, "gaussian:sigma=0.1", 1)
        report = nabn.calibrate(chip, list(x.split(5)), "low_rank", reference=net)
        assert report.n_passes > 2
        with torch.no_grad():
            outputs.append(chip(x))
        if len(outputs) == 1:
            assert measured["stem"] == 1 and measured["head.0"] == 3 * report.n_passes
    assert torch.equal(*outputs)


def test_what_comes_behind_a_shared_layer_by_any_way():
    ways = [["a", "b", "c", "d"], ["a", "d", "e"], ["f", "b"], ["g"]]
    assert exact._behind({"c"}, ways) == {"c", "d", "e"}
    assert exact._behind({"f"}, ways) == {"f", "b", "c", "d", "e"}  # behind b in another batch
    assert exact._behind(set(), ways) == set()


def test_an_error_in_the_middle_ends_every_pass(deep):
    net, chip = deep
    calls = []

    def forward(model, batch):
        calls.append(len(batch))
        if model is chip and len(batch) == 5:
            chip[4].one.register_forward_hook(lambda *_: 1 / 0)
        return model(batch)

    before = threading.active_count()
    batches = [torch.randn(n, 3, 16, 16) for n in (4, 5, 3)]
    with pytest.raises(CalibrationError, match=r"analog model failed on calibration batch 0 .*ZeroDivisionError"):
        nabn.calibrate(chip, batches, "population", forward_fn=forward)
    chip[4].one._forward_hooks.clear()
    assert threading.active_count() == before
    nabn.calibrate(chip, batches, "population").undo()


def test_passes_inherit_what_torch_keeps_per_thread(deep, monkeypatch):
    net, chip = deep
    seen = []

    def forward(model, batch):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return model(batch)

    batches = [torch.randn(4, 3, 16, 16) for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=True):
        nabn.calibrate(chip, batches, "population", forward_fn=forward).undo()
    assert set(seen) == {(False, True, torch.bfloat16)}


@pytest.mark.parametrize("exponent", [-22, -30, 20])
def test_the_size_of_the_outputs_does_not_matter(exponent):
    """Squares of small numbers leave the range of single precision: once an error of 4.6 against 0.09 at 1e-22."""
    errors = []
    for factor in (1.0, 10.0**exponent):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval()
        with torch.no_grad():
            net[-1].weight.mul_(factor), net[-1].bias.mul_(factor)
        chip = chip_of(net, "gaussian:sigma=0.1", 0)
        generator = torch.Generator().manual_seed(5)
        images, x = torch.randn(64, 3, 10, 10, generator=generator), torch.randn(64, 3, 10, 10, generator=generator)
        for method in ("paired", "common_mode"):
            got, report = calibrated(chip, net, list(images.split(16)), method, x)
            with torch.no_grad():
                errors.append(float((got - net(x)).double().square().mean().sqrt() / net(x).double().std()))
    assert errors[2:] == pytest.approx(errors[:2], rel=1e-3)
