"""`auto` takes the candidate that agrees best on images held back, and leaves exactly that one's chip."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import aihwkit_nabn as nabn
from aihwkit_nabn import CalibrationMethod, register_calibration_method
from aihwkit_nabn.calibration import CALIBRATION_METHODS
from aihwkit_nabn.calibration.matching import disagreement, squared_error
from aihwkit_nabn.errors import CalibrationError, NabnError
from aihwkit_nabn.reporting.text import NumberStyle, footnotes
from aihwkit_nabn.results import Record, Results
from tests.networks import deep

NOISES = {
    "additive": nabn.presets.GaussianWeightNoisePreset(sigma=0.1),
    "pcm": nabn.presets.PCMPreset(),
    "read noise": nabn.presets.GaussianWeightNoisePreset(sigma=0.05, w_noise=0.02),
}


@pytest.fixture
def ruin():
    """Methods that make every chip worse: ``ruin`` and ``constant``."""

    @register_calibration_method("ruin")
    class Ruin(CalibrationMethod):
        """Every output doubled."""

        summary = "outputs doubled"

        def calibrate(self, session):
            for _ in session.batches():
                pass
            for alignment in session.alignments.values():
                one = torch.ones(alignment.n_channels)
                alignment.set(2 * one, 0 * one)

    @register_calibration_method("constant")
    class Constant(CalibrationMethod):
        """Every output of a layer far from where it was, whatever the input."""

        summary = "outputs that are constant"

        def calibrate(self, session):
            for alignment in session.alignments.values():
                one = torch.ones(alignment.n_channels)
                alignment.set(0 * one, 1000 * one)

    yield
    for name in ("ruin", "constant"):
        CALIBRATION_METHODS.unregister(name)


def chip_of(net, preset=NOISES["additive"], seed=0):
    return nabn.program_chip(nabn.convert_to_noise_aware(net, preset), seed=seed)


def taken(report):
    assert f"took {report.taken}" in report.notes
    return report.taken


def test_doing_nothing_is_taken_where_all_else_is_worse(ruin):
    net = deep(2)
    chip = chip_of(net)
    images, x = torch.randn(32, 3, 8, 8), torch.randn(8, 3, 8, 8)
    before = chip(x)
    report = nabn.calibrate(chip, [images], "auto", reference=net, candidates=("none", "ruin"))
    assert taken(report) == "none" and torch.equal(chip(x), before)
    report = nabn.calibrate(chip, [images], "auto", reference=net, candidates="ruin+none+paired")
    assert taken(report) == "paired"


def test_the_scale_of_the_disagreement_is_told_where_it_is_shown(ruin):
    net = deep(2)
    images = torch.randn(32, 3, 8, 8)
    report = nabn.calibrate(chip_of(net), [images], "auto", reference=net, candidates="none+ruin+paired")
    said, _, losses = report.notes[-1].partition(": ")
    assert said == "disagreement with the reference, 0 (none) to 1 (no better than a constant), on 8 images held back"
    found = dict(part.split() for part in losses.split(", "))
    assert 0 < float(found["paired"]) < float(found["none"]) < float(found["ruin"]) <= 1
    # In tables, the numbers of the scale stay what they are, those of the chips become ranges.
    measured = [
        Record(scenario="s", method="auto", method_name="auto", chip_seed=seed, metrics={"m": 1.0}, note=note)
        for seed, note in enumerate((f"{said}: none 0.25, paired 0.125", f"{said}: none 0.5, paired 0.125"))
    ]
    result = Results(records=measured, digital={"m": 1.0}, settings={})
    assert footnotes(result, NumberStyle(decimals=1), []) == [
        f"auto: {said}: none 0.25 to 0.5, paired 0.125 (2 of 2 measurements)."
    ]
    # Exactly 0 where the chip is the reference, exactly 1 where every block is further off than a constant.
    exact = chip_of(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.0))
    for candidate, expected in (("none", 0.0), ("constant", 1.0)):
        ends = nabn.calibrate(exact, [images], "auto", reference=net, candidates=[candidate])
        assert float(ends.notes[-1].rpartition(" ")[2]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_it_leaves_the_chip_of_the_one_it_took(noise):
    net = deep(2)
    chip = chip_of(net, NOISES[noise])
    images, x = torch.randn(48, 3, 8, 8), torch.randn(8, 3, 8, 8)
    batches = list(images.split(20))
    report = nabn.calibrate(chip, batches, "auto", reference=net)
    name = taken(report)
    assert "on 12 images held back" in report.notes[-1] and name in report.notes[-1]
    got = chip(x)
    report.undo()
    nabn.program_chip(chip, seed=0)
    if name != "none":
        nabn.calibrate(chip, batches, name, reference=net)
    assert torch.equal(chip(x), got)


def test_the_batches_do_not_matter():
    net = deep(2)
    images, x = torch.randn(40, 3, 8, 8), torch.randn(8, 3, 8, 8)
    outputs, names = [], set()
    for sizes in ([40], [16, 16, 8], [1] * 40):
        chip = chip_of(net)
        names.add(taken(nabn.calibrate(chip, list(images.split(sizes)), "auto", reference=net)))
        outputs.append(chip(x))
    assert len(names) == 1
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-4, atol=1e-5)


def test_what_it_takes_is_close_to_the_best_on_other_images():
    """Five chips at three strengths: further from the reference than the best candidate by 10% at most."""
    net = deep(4)
    images, x = torch.randn(64, 3, 8, 8), torch.randn(64, 3, 8, 8)

    @torch.no_grad()
    def error(chip):
        return float((chip(x) - net(x)).square().mean())

    for sigma in (0.02, 0.1, 0.3):
        for seed in range(5):
            chip = chip_of(net, nabn.presets.GaussianWeightNoisePreset(sigma=sigma), seed)
            errors = [error(chip)]
            for name in ("population", "low_rank"):
                nabn.calibrate(chip, [images], name, **({} if name == "population" else {"reference": net}))
                errors.append(error(chip))
            nabn.calibrate(chip, [images], "auto", reference=net)
            assert error(chip) <= 1.1 * min(errors)


def test_a_candidate_without_a_place_is_left_out():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    report = nabn.calibrate(chip_of(net), [torch.randn(32, 8)], "auto", reference=net)
    assert "population not possible (the model has no BatchNorm" in report.notes[-1]
    with pytest.raises(CalibrationError, match="none of the candidates.*population not possible"):
        nabn.calibrate(chip_of(net), [torch.randn(32, 8)], "auto", reference=net, candidates=["population"])


def test_batches_that_cannot_be_divided_are_compared_on_themselves():
    net = deep(2)
    chip = chip_of(net)
    record = {"inputs": [torch.randn(3, 8, 8) for _ in range(6)]}

    def forward(model, batch):
        return model(torch.stack(batch["inputs"]))

    report = nabn.calibrate(chip, [record], "auto", reference=net, forward_fn=forward)
    assert "which cannot be divided" in report.notes[-1] and report.n_samples == 6
    report = nabn.calibrate(chip, [record, record, record], "auto", reference=net, forward_fn=forward)
    assert "on 6 images held back" in report.notes[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": ()}, "candidates must be names"),
        ({"candidates": 3}, "candidates must be names"),
        ({"candidates": "none+pared"}, "unknown candidate 'pared'.*paired"),
        ({"candidates": "none+auto"}, "candidates.*'auto'"),
        ({"candidates": "none+online"}, "candidates.*'online'"),
        ({"held_out": 0.0}, "held_out"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(NabnError, match=message):
        nabn.calibrate(nn.Linear(2, 2), [], "auto", **options)


def test_every_candidate_that_takes_a_budget_gets_it():
    found = dict(CALIBRATION_METHODS.get("auto")(candidates="none+paired+low_rank+distill", budget=0.2).candidates)
    assert found["none"] is None and found["low_rank"].budget == found["distill"].start.budget == 0.2


class Branch(nn.Module):
    """A layer behind a ReLU: a block whose output may be zero everywhere."""

    def __init__(self, bias):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        nn.init.constant_(self.conv.bias, bias)

    def forward(self, x):
        return self.conv(x).relu()


class WithBranch(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.branch, self.last, self.head = Branch(bias), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        y = self.norm(self.first(x)).relu()
        return self.head(self.last(y + self.branch(y)).relu().mean((2, 3)))


@pytest.mark.parametrize("bias", [0.0, -1.0, -1.5, -5.0])
def test_a_dead_block_decides_nothing(bias):
    """From alive to dead in the reference, where the chip leaks a little."""
    net = WithBranch(bias).eval()
    images = torch.randn(24, 3, 8, 8)
    report = nabn.calibrate(chip_of(net), [images], "auto", reference=net)
    losses = report.notes[-1].partition(": ")[2]
    assert "inf" not in losses and taken(report) == "low_rank", losses
    assert all(float(part.split()[1]) <= 1 for part in losses.split(", "))


def test_a_reference_whose_blocks_do_not_vary_is_told():
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    with pytest.raises(CalibrationError, match="method='low_rank'"):
        nabn.calibrate(chip_of(net), [torch.randn(8, 3, 8, 8)], "auto", reference=net)


@dataclasses.dataclass
class Out:
    logits: Tensor
    extra: object = None


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Answering()

    def forward(self, x):
        return self.net(x)


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return Out(self.conv(x).mean((2, 3)))


def test_blocks_may_return_dataclasses():
    net = Wrapped().eval()
    report = nabn.calibrate(chip_of(net), [torch.randn(16, 3, 8, 8)], "auto", reference=net)
    assert taken(report) in ("none", "low_rank")


@pytest.mark.parametrize(("n", "few"), [(2, True), (4, True), (5, False), (16, False)])
def test_few_images_are_told(n, few):
    net = deep(2)
    report = nabn.calibrate(chip_of(net), [torch.randn(n, 3, 8, 8)], "auto", reference=net)
    assert any("from luck" in note for note in report.notes) == few


def test_names_of_candidates_may_have_blanks():
    auto = CALIBRATION_METHODS.get("auto")
    assert [name for name, _ in auto(candidates=" none + paired ").candidates] == ["none", "paired"]
    with pytest.raises(NabnError) as error:
        auto(candidates="none+")
    assert "online" not in str(error.value) and "paired" in str(error.value)


@pytest.mark.parametrize("correlation", [0.2, 0.6, 0.95])
def test_the_disagreement_does_not_favour_a_spread_that_is_too_small(correlation):
    target, other = torch.randn(2, 4, 3, 50, 50)
    other -= (other * target).mean() / target.square().mean() * target
    same_spread = correlation * target + (1 - correlation**2) ** 0.5 * other
    spreads = [0.0, 0.1, correlation, 1.0, 1.5]
    found = [float(disagreement(0.3 + spread * same_spread, 0.3 + target)) for spread in spreads]
    assert min(found) == found[3] == pytest.approx(1 - correlation, abs=0.02)
    assert found[0] == 1.0 and found[3] < found[4] <= 1.0
    errors = [float(squared_error(spread * same_spread, target)) for spread in spreads]
    assert min(errors) == errors[2]  # the loss that auto used before
    assert float(disagreement(target + 0.5, target)) == pytest.approx(0.25, rel=0.05)
    assert torch.isnan(disagreement(target * torch.nan, target))


def test_what_images_lost_before_the_chip_is_given_back_though_the_chip_is_exact():
    """As with compressed images and a clean reference: the chip's outputs have too little spread."""
    net = deep(2)
    clean = torch.randn(64, 3, 8, 8)
    pairs = list(zip(clean.split(16), (0.5 * clean + 0.5 * torch.randn_like(clean)).split(16), strict=True))
    chip = chip_of(net, nabn.presets.GaussianWeightNoisePreset(sigma=0.0))
    report = nabn.calibrate(
        chip,
        pairs,
        "auto",
        reference=net,
        candidates="none+paired",
        forward_fn=lambda network, pair: network(pair[1]),
        reference_forward_fn=lambda network, pair: network(pair[0]),
    )
    assert taken(report) == "paired"
