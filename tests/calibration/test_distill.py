"""Tuning from the closed form: never worse where it can tell, and said where it stayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aihwkit_nabn as nabn
from aihwkit_nabn.calibration import CalibrationSession
from aihwkit_nabn.calibration.matching import BlockObjective
from aihwkit_nabn.errors import CalibrationError
from aihwkit_nabn.nn import named_analog_layers
from tests.chips import chip_of
from tests.networks import ResidualBlock, deep
from tests.tensors import bits, equal


def test_distill_never_ends_worse_on_the_samples_held_out(chip, net, images):
    """With an absurd step size tuning only destroys: what is kept is the start."""
    batches = [images(48, 1), images(48, 2)]
    x = images(8, 3)
    nabn.calibrate(chip, batches, "paired", reference=net)
    paired = chip(x)
    report = nabn.calibrate(chip, batches, "distill", reference=net, steps=4, lr=1e4, start="paired")
    assert torch.equal(chip(x), paired)
    assert report.notes == ["tuning found nothing better, so it stayed at its start"]
    assert report.notes[0] in str(report)
    assert report.loss_before == report.loss_after > 0
    report = nabn.calibrate(chip, batches, "distill", reference=net, steps=60, start="paired")
    assert not torch.equal(chip(x), paired) and not report.notes
    assert 0 < report.loss_after < report.loss_before
    assert f"loss on the samples held out: {report.loss_before:.3g} -> {report.loss_after:.3g}" in str(report)


def test_the_loss_is_that_of_the_blocks_on_the_samples_held_out():
    net = deep(2)
    chip = chip_of(net, "gaussian:sigma=0.1", 0)
    x = torch.randn(2, 3, 8, 8)

    @torch.no_grad()
    def loss(held):
        session = CalibrationSession(chip, net, [held], lambda model, batch: model(batch), None)
        return BlockObjective(session, session.samples(), 0.0, None).mean([list(range(len(held)))])

    nabn.calibrate(chip, [x], "paired", reference=net)
    report = nabn.calibrate(chip, [x], "distill", reference=net, start="paired", steps=4, held_out=0.5)
    assert report.taken == "distill" and report.loss_after == pytest.approx(loss(x[:1]), rel=1e-4)
    report = nabn.calibrate(chip, [x], "distill", reference=net, start="paired", steps=4, held_out=0.0)
    assert report.loss_before is None and report.loss_after is None and "loss on" not in str(report)


@pytest.mark.slow
def test_distill_finds_its_step():
    """From a first step far too large, which once lost everything that tuning had to give on deep networks."""

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), *(ResidualBlock(12) for _ in range(6)), nn.Flatten(), nn.Linear(768, 5)
    )
    for _ in range(20):
        net(torch.randn(32, 3, 8, 8))
    net.eval()
    chip = chip_of(net, "gaussian:sigma=0.1", 1)
    batches, x = [torch.randn(64, 3, 8, 8) for _ in range(2)], torch.randn(128, 3, 8, 8)

    def error(method, **options):
        report = nabn.calibrate(chip, batches, method, reference=net, **options)
        with torch.no_grad():
            return float((chip(x) - net(x)).square().mean()), report.notes

    start, _ = error("paired")
    for lr in (0.5, 0.02):
        found, notes = error("distill", lr=lr, start="paired")
        assert found < 0.98 * start and not notes


def test_prediction_weight_is_refused_before_anything_runs_on_the_chip(chip, net, images):
    def forward(model, batch):
        assert model is not chip
        return {"logits": model(batch)}

    chip.__dict__["verification"] = object()  # nothing to verify any more
    before = bits(chip)
    with pytest.raises(CalibrationError, match="prediction_weight needs a model that returns one tensor of logits"):
        nabn.calibrate(chip, [images(4)], "distill", reference=net, prediction_weight=1.0, forward_fn=forward)
    assert equal(bits(chip), before)


def test_distill_needs_gradients_through_the_forward_pass(chip, net, images):
    @torch.no_grad()
    def forward(model, batch):
        return model(batch)

    before = bits(chip)
    with pytest.raises(CalibrationError, match="runs without gradients"):
        nabn.calibrate(chip, [images(8)], "distill", reference=net, forward_fn=forward, steps=2)
    assert equal(bits(chip), before)


def test_distill_can_match_predictions_too(chip, net, images):
    batches = [images(48, 1), images(48, 2)]
    nabn.calibrate(chip, batches, "distill", reference=net, steps=10)
    blocks_only = chip(images(8, 3))
    nabn.calibrate(chip, batches, "distill", reference=net, steps=10, prediction_weight=5.0)
    assert not torch.equal(chip(images(8, 3)), blocks_only)


def test_batches_that_cannot_be_regrouped_are_distilled_whole(chip, net, images):
    sizes = []

    def forward(model, batch):
        if model is chip:
            sizes.append(len(batch["image"]))
        return model(batch["image"])

    batches = [{"image": images(n, n)} for n in (3, 5, 2)]
    nabn.calibrate(chip, batches, "distill", reference=net, steps=4, batch_size=64, forward_fn=forward)
    assert set(sizes) == {3, 5, 2}


def test_what_cannot_be_divided_is_not_tuned(chip, net, images):
    """Nothing would tell whether it helped: with one batch of 24 it once made three times the error, without a word."""
    x = images(8, 3)
    for batches, forward in (
        ([images(1)], None),
        ([{"image": images(24)}], lambda model, batch: model(batch["image"])),
    ):
        nabn.calibrate(chip, batches, "paired", reference=net, forward_fn=forward)
        paired = chip(x)
        report = nabn.calibrate(chip, batches, "distill", reference=net, steps=4, forward_fn=forward, start="paired")
        assert torch.equal(chip(x), paired)
        assert report.notes == ["the calibration set cannot be divided, so nothing was tuned"]


def test_nothing_held_out_keeps_the_last_state(chip, net, images):
    """Every stretch of steps counts, not the first alone."""
    states = []
    for steps in (8, 16, 64):
        report = nabn.calibrate(
            chip, [images(32, 1)], "distill", reference=net, steps=steps, held_out=0.0, start="paired"
        )
        states.append(chip(images(8, 3)))
        assert not report.notes
    assert not torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])


def test_it_tunes_corrections_too():
    """From `low_rank`, the mixing of its corrections moves with scales and offsets, and brings the chip closer."""
    net = deep(4)
    chip = chip_of(net, "gaussian:sigma=0.2", 0)
    images, x = torch.randn(128, 3, 8, 8), torch.randn(64, 3, 8, 8)

    def corrections():
        found = [layer.alignment.mixing for layer in named_analog_layers(chip).values()]
        return [mixing for mixing in found if mixing is not None]

    errors = {}
    for method, options in (("low_rank", {}), ("distill", {"steps": 60})):
        nabn.calibrate(chip, list(images.split(32)), method, reference=net, budget=0.3, **options)
        with torch.no_grad():
            errors[method] = float((chip(x) - net(x)).square().mean())
        if method == "low_rank":
            before = corrections()
    assert errors["distill"] < errors["low_rank"]
    assert before and all(not torch.equal(a, b) for a, b in zip(corrections(), before, strict=True))
