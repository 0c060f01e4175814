"""References that do not fit the chip, and layers that only one of the two runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aihwkit_nabn as nabn
from aihwkit_nabn.errors import CalibrationError, VerificationError
from tests.chips import chip_of
from tests.tensors import bits, equal


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
    chip = chip_of(net, "gaussian:sigma=0.1", 0)
    with pytest.warns(UserWarning, match=r"reads the weights of 1 analog layers \(read\) instead of calling them"):
        report = nabn.calibrate(chip, [torch.randn(8, 4)], "paired", reference=net)
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
    chip = chip_of(net, "gaussian:sigma=0.01", 0, example_inputs=batches[0])
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
def test_references_that_do_not_fit(kind, method, chip, net, batches):
    make, message = REFERENCES[kind]
    reference = make(net)
    before = bits(chip)
    with pytest.raises(CalibrationError, match=message):
        nabn.calibrate(chip, batches, method, reference=reference)
    assert equal(bits(chip), before)


def test_the_chip_is_no_reference_of_itself(chip, batches):
    with pytest.raises(CalibrationError, match="has analog layers itself"):
        nabn.calibrate(chip, batches, reference=chip)


def test_another_checkpoint_is_refused_also_once_the_chip_is_verified(net, batches):
    """A copy of the network is none."""
    preset = nabn.presets.GaussianWeightNoisePreset(sigma=0.05)
    chip = nabn.program_chip(nabn.convert_to_noise_aware(net, preset, example_inputs=batches[0]), seed=1)
    nabn.calibrate(chip, batches, "paired", reference=copy.deepcopy(net))
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong.head.weight.mul_(-1.0)
    with pytest.raises(VerificationError, match="'head'"):
        nabn.calibrate(chip, batches, "paired", reference=wrong)
