"""A chip that does not compute what its model computes is an error that names the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import ConversionError, VerificationError
from aihwkit_nabn.nn import named_analog_layers
from aihwkit_nabn.nn.verification import verification_of
from aihwkit_nabn.reporting import markdown_table, print_table
from tests.chips import chip_of, evaluated, tiled


class Two(nn.Module):
    """Two layers, called one after the other; subclasses reach them in their own ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.keep()

    def keep(self):
        pass

    def forward(self, x):
        return self.b(self.a(x).relu())


GLOBALS = {}


class ThroughAGlobal(Two):
    def keep(self):
        GLOBALS.update(a=self.a)

    def forward(self, x):
        return self.b(GLOBALS["a"](x).relu())


def compiled_layer():
    net = Two()
    net.a = torch.compile(net.a, backend="eager")
    return net


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
RPU = nabn.presets.GaussianWeightNoisePreset(sigma=1.0)


def test_layers_reached_otherwise_are_named():
    net = ThroughAGlobal().eval()
    with pytest.raises(VerificationError, match=r"'a' \(Conv2d\) ran 1 times in the model and 0 .* as an attribute of"):
        nabn.convert_to_noise_aware(net, RPU, example_inputs=X)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, RPU), seed=0)
    assert "not verified" in str(chip.conversion_report) and "example_inputs=" in str(chip.conversion_report)
    with pytest.raises(VerificationError, match="layer 'a'"):
        nabn.calibrate(chip, [X], "paired", reference=net)
    with pytest.raises(VerificationError, match="layer 'a'"):
        evaluated(net, lambda model: {"mean": float(model(X).mean())}, RPU)


def test_compiled_layers_are_told_at_once():
    for net in (compiled_layer(), torch.compile(Two(), backend="eager")):
        with pytest.raises(ConversionError, match=r"was compiled by torch.compile.*convert the model first"):
            nabn.convert_to_noise_aware(net.eval(), RPU)


def test_values_are_compared_layer_by_layer():
    net = Two().eval()
    chip = nabn.convert_to_noise_aware(net, RPU)
    with torch.no_grad():
        net.b.weight[0, 0] += 0.1
    nabn.program_chip(chip, seed=0)
    with pytest.raises(VerificationError, match="layer 'b' gives another result on the chip without noise"):
        nabn.calibrate(chip, [X], "paired", reference=net)
    # Without a reference nobody says that the model is still what it was: the layers that ran are compared alone.
    net.bn = nn.BatchNorm2d(2).eval()
    assert verification_of(chip) is None


def test_shapes_are_compared():
    net = Two().eval()
    chip = nabn.convert_to_noise_aware(net, RPU)
    chip.a.linear_map = copy.copy(chip.a.linear_map)
    object.__setattr__(chip.a.linear_map, "padding", (1, 1))
    nabn.program_chip(chip, seed=0)
    with pytest.raises(
        VerificationError, match=r"layer 'a' gives \(2, 4, 4, 4\) in the model and \(2, 4, 6, 6\) on the"
    ):
        nabn.calibrate(chip, [X], "paired", reference=net)


def test_results_are_compared():
    class Other(Two):
        def forward(self, x):
            return super().forward(x) * (1.0 if isinstance(self.a, nn.Conv2d) else 1.01)

    with pytest.raises(VerificationError, match="all layers give the same .* but the results differ by 1.0e-02"):
        nabn.convert_to_noise_aware(Other().eval(), RPU, example_inputs=X)


@pytest.mark.parametrize(
    "preset", ["GaussianWeightNoisePreset", "PCMPreset", "StandardCrossbarPreset", "ReRAMWanPreset"]
)
def test_a_programmed_chip_is_verified_without_its_noise_and_comes_out_as_it_was(preset, net, images):
    chip = chip_of(net, tiled(getattr(nabn.presets, preset)()), 0, "1d")
    twin = copy.deepcopy(chip)
    report = nabn.calibrate(chip, [images(4)], "population")
    assert report.verified.startswith("verified on 2 calibration samples") and verification_of(chip) is not None
    assert float(report.verified.partition("largest difference ")[2].split()[0]) < 1e-5
    report.undo()
    nabn.set_read_noise_seed(chip, 3), nabn.set_read_noise_seed(twin, 3)
    assert torch.equal(chip(images(3, 5)), twin(images(3, 5)))


def test_once_per_model(net, images):
    counts = []

    def forward(model, batch):
        counts.append(model is not net)
        return model(batch)

    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset()), seed=0)
    nabn.calibrate(chip, [images(4)], "paired", reference=net, forward_fn=forward)
    assert len(counts) == 4
    nabn.program_chip(chip, seed=1)
    nabn.calibrate(chip, [images(4)], "paired", reference=net, forward_fn=forward)
    assert len(counts) == 6


def test_weights_that_are_read_are_no_error_but_layers_never_called_are_told():
    class Reads(Two):
        def forward(self, x):
            return F.conv2d(self.a(x).relu(), self.b.weight, self.b.bias)

    with pytest.warns(UserWarning, match=r"reads the weights of 1 analog layers \(b\) instead of calling them"):
        chip = nabn.convert_to_noise_aware(Reads().eval(), RPU, example_inputs=X)
    assert "1 layers give what" in chip.conversion_report.verified
    assert "1 read instead of called (programming noise acts" in chip.conversion_report.verified
    net = nn.Sequential(Reads(), nn.BatchNorm2d(2)).eval()
    for method in ("population", "paired"):  # whatever the method
        chip = nabn.program_chip(nabn.convert_to_noise_aware(net, RPU), seed=0)
        with pytest.warns(UserWarning, match=r"reads the weights of 1 analog layers \(0.b\)"):
            report = nabn.calibrate(chip, [X], method, reference=net)
        assert "1 read instead of called" in report.verified and "read instead" in str(chip.conversion_report)

    class Auxiliary(Two):
        def forward(self, x):
            return self.a(x)

    chip = nabn.convert_to_noise_aware(Auxiliary().eval(), RPU, example_inputs=X)
    assert "1 did not run: b" in chip.conversion_report.verified


def test_what_is_not_verified_stands_under_the_table(net, images, capsys):
    x = images(4)
    plain = evaluated(net, lambda model: {"mean": float(model(x).mean())})
    assert "verified on 2 of the test samples" in plain.settings["conversion"]["s"]
    print_table(plain)
    assert "ot verified" not in capsys.readouterr().out
    other = evaluated(net, lambda model: {"mean": float(model.forward(x).mean())})
    print_table(other)
    assert "Not verified: eval_fn does not call the model itself" in " ".join(capsys.readouterr().out.split())
    assert "Not verified" in markdown_table(other)


def test_calibrated_layers_do_not_change_what_is_compared(net, images):
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, nabn.presets.PCMPreset()), seed=0)
    nabn.calibrate(chip, [images(8)], "paired", reference=net)
    chip.__dict__.pop("verification")
    nabn.calibrate(chip, [images(8)], "common_mode", reference=net)
    assert verification_of(chip).n_layers == len(named_analog_layers(chip))


class ThroughAView(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        weight = self.a.weight
        self.op = lambda x: x @ weight.T

    def forward(self, x):
        return self.b(self.op(x))


def test_weights_used_past_their_layers_calls_are_named():
    with pytest.raises(VerificationError, match=r"layer 'a' \(Linear\) stays digital: its weight is used"):
        nabn.convert_to_noise_aware(ThroughAView().eval(), RPU, example_inputs=torch.randn(3, 5))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o, self.f = nn.Embedding(5, 6), nn.Linear(6, 5), nn.Linear(6, 2)
        self.o.weight = self.e.weight

    def forward(self, x):
        return self.f(self.e(x))


class Moving(Two):
    """Counts its calls in a buffer, keeps a list, and writes into its input."""

    def keep(self):
        self.register_buffer("mean", torch.zeros(()))
        self.seen = None

    def forward(self, x):
        x.mul_(2.0)
        self.mean = self.mean * 0.9 + x.mean()
        self.seen = self.b.weight if self.seen is None else self.seen
        return super().forward(x) + self.mean


@pytest.mark.parametrize(
    ("make", "x"), [(Tied, torch.randint(5, (3, 4))), (Moving, X)], ids=["tied head", "state that moves"]
)
def test_sound_models_are_not_refused(make, x):
    net = make().eval()
    kept = x.clone()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    chip = nabn.convert_to_noise_aware(net, RPU, example_inputs=x)
    assert "verified on the example inputs" in chip.conversion_report.verified and torch.equal(x, kept)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    if make is Moving:
        assert net.seen is None and chip.seen is None
        result = evaluated(net, lambda model: {"mean": float(model(x.clone()).mean())})
        assert "verified on" in result.settings["conversion"]["s"]


def test_inputs_that_show_nothing():
    for x in (X[:0], X * float("nan")):
        chip = nabn.convert_to_noise_aware(Two().eval(), RPU, example_inputs=x)
        assert chip.conversion_report.verified.startswith("not verified: no layer gave a finite value")
    with pytest.raises(ConversionError, match="example_inputs: the model failed on them"):
        nabn.convert_to_noise_aware(Two().eval(), RPU, example_inputs="x")
    chip = nabn.convert_to_noise_aware(Two().eval(), RPU, example_inputs={"x": X})
    assert verification_of(chip) is not None


def test_models_that_take_whole_batches_only(images):
    class Whole(Two):
        def forward(self, x):
            return super().forward(x.view(4, 3, 6, 6))

    result = evaluated(Whole().eval(), lambda model: {"mean": float(model(X).mean())})
    assert "verified on the first test batch" in result.settings["conversion"]["s"]


def test_aihwkits_own_layers_are_told_as_not_verified():
    own = convert_to_analog(Two().eval(), nabn.presets.PCMPreset()).eval()
    report = nabn.convert_to_noise_aware(own, nabn.presets.PCMPreset(), example_inputs=X).conversion_report
    reason = "2 ran, not compared (aihwkit's own layer, whose noise cannot be left out): a, b"
    assert report.verified == f"not verified: no layer's results could be compared on the example inputs; {reason}"
    mixed = Two().eval()
    mixed.b = own.b
    report = nabn.convert_to_noise_aware(mixed, nabn.presets.PCMPreset(), example_inputs=X).conversion_report
    assert (
        report.verified.startswith("verified on the example inputs: 1 layers give") and "1 ran, not" in report.verified
    )


def test_digital_weights_that_changed_are_told_as_not_verified():
    net = nn.Sequential(Two(), nn.BatchNorm2d(2)).eval()
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, RPU), seed=0)
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter.mul_(2.0)
    report = nabn.calibrate(chip, [X], "population")
    assert report.verified.startswith(
        "not verified: no layer's results could be compared on 2 calibration samples; 2 ran"
    )
    assert "the digital weights have changed since the conversion" in report.verified


def test_layers_compiled_in_place_are_watched_uncompiled():
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    net = nn.Sequential(Two(), nn.BatchNorm2d(2)).eval()
    for part in (net[0].a, net[0], net):
        part.compile(backend=backend)
    expected = net(X)
    first = len(compiled)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, RPU, example_inputs=X), seed=0)
    for method in ("population", "paired", "common_mode"):
        report = nabn.calibrate(chip, [X], method, reference=net)
    assert first and len(compiled) == first and report.verified.startswith("verified on the example inputs: 2 layers")
    assert torch.equal(net(X), expected) and len(compiled) == first  # still compiled, as it was
    assert net[0].a._compiled_call_impl is not None and not torch.allclose(chip(X), expected, atol=0.1)


def test_hooks_that_a_network_gives_itself_when_it_runs_are_not_doubled() -> None:
    """As transformers' networks do it to collect hidden states."""
    found: list[torch.Tensor] = []

    class Collecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.is_collecting = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.is_collecting:
                for layer in self.layers:
                    layer.register_forward_hook(lambda module, args, output: found.append(output))
                self.is_collecting = True
            found.clear()
            for layer in self.layers:
                x = layer(x)
            return torch.stack(found)

    model, x = Collecting().eval(), torch.randn(3, 4)
    chip = nabn.convert_to_noise_aware(model, nabn.presets.PCMPreset(), example_inputs=x)
    assert chip(x).shape == model(x).shape == (2, 3, 4)
